"""data2vec for fairseq: one self-supervised algorithm for speech, images and text.

fairseq imports this package through ``common.user_dir=d2v_plugin`` (or ``--user-dir d2v_plugin``)
and then every file of ``tasks/`` and ``models/``, which register what fairseq needs. Nothing heavy
is imported here, so that loading a checkpoint for inference does not need fairseq.
"""

__version__ = "0.1.0"
