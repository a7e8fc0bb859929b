"""A fourth modality for data2vec 2.0: log-mel spectrograms. ``common.user_dir`` names this folder.

Importing it registers everything of ``d2v_plugin`` and then the modality, whose settings appear as
``model.modalities.spectrogram``.
"""

from d2v_plugin.register import register_plugin

from . import log_mel  # noqa: F401  the modality registers itself, before the model's settings are read

register_plugin()
