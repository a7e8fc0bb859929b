"""What several tasks say about fields that they share."""

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError

from d2v_plugin.errors import UserError
from d2v_plugin.modalities import modality_name

OWN_MODALITIES = ("AUDIO", "IMAGE", "TEXT")


def is_unset(cfg) -> bool:
    """Whether ``data`` was left as it is by default, or emptied."""
    missing = OmegaConf.is_config(cfg) and OmegaConf.is_missing(cfg, "data")
    return missing or getattr(cfg, "data", None) in (None, "", MISSING)


def check_data(cfg, holding: str, kind: str) -> None:
    """Raises ``UserError`` without ``data``; the folder is to be one ``holding`` something, such as /path/to/kind."""
    if is_unset(cfg):
        raise UserError(f"task.data is not set; give the folder {holding}, task.data=/path/to/{kind}")


def check_max_bad_files(cfg) -> None:
    """Raises ``UserError`` for a number that means nothing."""
    if cfg.max_bad_files < -1:
        raise UserError(f"task.max_bad_files must be -1 (no limit), 0 or more, got {cfg.max_bad_files}")


def check_modality(model_cfg, own: str, serves: str, strangers: bool = False) -> None:
    """Refuse a model of another modality before it is built: building would complain of what that modality lacks.

    Args:
        own: the modality whose data the task ``serves``.
        strangers: let modalities pass that other packages registered.
    Raises:
        UserError: ``model.supported_modality`` is another one.
    """
    value = getattr(model_cfg, "supported_modality", None)
    if value is None or (modality := modality_name(value)) == own:
        return
    if not strangers or modality in OWN_MODALITIES:
        raise UserError(
            f"model.supported_modality={modality} and a task that serves {serves}; set "
            f"model.supported_modality={own}, or choose the task of that modality"
        )


def elsewhere(cfg, name: str, default):
    """The value of a field that refers to another part of the configuration, or ``default`` for a task without one."""
    try:
        return getattr(cfg, name)
    except (InterpolationKeyError, InterpolationResolutionError):
        return default


def train_subset(cfg) -> str:
    """``dataset.train_subset``."""
    return elsewhere(cfg, "train_subset", "train")
