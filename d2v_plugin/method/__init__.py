"""What makes it data2vec, once for both versions and all modalities. Needs torch and ``d2v_kernels`` only."""
