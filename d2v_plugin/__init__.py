"""data2vec for fairseq: self-supervised learning with an EMA teacher; data2vec 1.0 for speech so far.

fairseq imports this package through ``common.user_dir=d2v_plugin`` (or ``--user-dir d2v_plugin``)
and then every file of ``tasks/`` and ``models/``, which register what fairseq needs. Nothing heavy
is imported here; ``method/``, ``modules/`` and ``checkpoints/`` do without fairseq.
"""

__version__ = "0.1.0"
