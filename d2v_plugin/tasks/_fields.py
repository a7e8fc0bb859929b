"""What several tasks say about fields that they share."""

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError

from d2v_plugin.errors import UserError


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


def elsewhere(cfg, name: str, default):
    """The value of a field that refers to another part of the configuration, or ``default`` for a task without one."""
    try:
        return getattr(cfg, name)
    except (InterpolationKeyError, InterpolationResolutionError):
        return default


def train_subset(cfg) -> str:
    """``dataset.train_subset``."""
    return elsewhere(cfg, "train_subset", "train")
