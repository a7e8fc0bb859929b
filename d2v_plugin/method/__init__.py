"""What makes it data2vec, once and for every model. Needs torch and ``d2v_kernels`` only."""
