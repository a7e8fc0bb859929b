"""Tasks. fairseq imports every file here whose name does not begin with an underscore."""

from d2v_plugin.fairseq_hooks import install

# The first thing fairseq imports of a user directory, so checkpoints are read and written our way from here on.
install()
