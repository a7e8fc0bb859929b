"""Upstream's enumeration of modalities, which files of its 2.0 may name; ours are names (``d2v_plugin.modalities``)."""

from enum import Enum


class Modality(Enum):
    """Members by upstream's values: a pickle holds the value."""

    AUDIO = 1
    IMAGE = 2
    TEXT = 3
