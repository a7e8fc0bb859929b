"""Tasks. fairseq imports every file here whose name does not begin with an underscore."""
