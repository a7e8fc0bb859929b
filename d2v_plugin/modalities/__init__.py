"""What differs between kinds of data: how they become a sequence, where its positions are, how they are masked.

``base.py`` documents how to add one; ``examples/spectrogram`` is a worked case.
"""

from d2v_plugin.modalities.audio import AudioEncoder
from d2v_plugin.modalities.image import ImageEncoder
from d2v_plugin.modalities.registry import encoder_class, modalities_config, modality_name, register_modality
from d2v_plugin.modalities.text import TextEncoder

__all__ = [
    "AudioEncoder",
    "ImageEncoder",
    "TextEncoder",
    "encoder_class",
    "modalities_config",
    "modality_name",
    "register_modality",
]
