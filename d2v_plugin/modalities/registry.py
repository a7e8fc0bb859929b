"""Modalities by name. Those of upstream are AUDIO, IMAGE and TEXT; a package of one's own may register more."""

from dataclasses import field, make_dataclass
from functools import lru_cache

from d2v_plugin.errors import UserError

_ENCODERS = {}


def register_modality(name):
    """Class decorator for a ``ModalityEncoder``: ``name`` becomes its name in ``mode`` and ``supported_modality``.

    The class says with ``config`` which dataclass holds its settings; they appear as ``model.modalities.<name>`` in
    lower case, and its parameters as ``modality_encoders.<NAME>`` in checkpoints.
    """
    name = name.upper()

    def register(cls):
        known = _ENCODERS.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"modality {name} is taken by {known.__name__}; register under another name")
        cls.modality = name
        _ENCODERS[name] = cls
        return cls

    return register


def encoder_class(name):
    """The registered class. Raises ``UserError`` for a name that nothing registered."""
    name = modality_name(name)
    if name not in _ENCODERS:
        raise UserError(f"there is no modality {name!r}; known are {', '.join(_ENCODERS)}")
    return _ENCODERS[name]


def modality_name(value):
    """``"AUDIO"`` from that, from ``"audio"``, or from upstream's enumeration member ``Modality.AUDIO``."""
    return str(getattr(value, "name", value)).rpartition(".")[2].upper()


def modalities_config():
    """The defaults of ``model.modalities``: the settings of every registered modality, under its name."""
    return _config_class(tuple(_ENCODERS.items()))()


@lru_cache
def _config_class(encoders):
    # one class per set of modalities: OmegaConf merges configurations of one class only
    fields = [(name.lower(), cls.config, field(default_factory=cls.config)) for name, cls in encoders]
    return make_dataclass("ModalitiesConfig", fields)
