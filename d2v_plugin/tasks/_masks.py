"""Masks that the data workers draw: their settings, and whether the model has the same ones."""

import torch
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError

from d2v_plugin.errors import UserError
from d2v_plugin.tasks._forward import takes

# argument of AudioMasks and ImageMasks -> field of precompute_mask_config
FIELDS = {
    "prob": "mask_prob",
    "adjust": "mask_prob_adjust",
    "length": "mask_length",
    "inverse": "inverse_mask",
    "dropout": "mask_dropout",
    "clones": "clone_batch",
    "expand_adjacent": "expand_adjacent",
    "non_overlapping": "non_overlapping",
}


def mask_settings(wanted, **own: str) -> dict:
    """The values of ``wanted``, a ``precompute_mask_config``, by the names in FIELDS and in ``own``.

    Raises:
        UserError: a setting that is to be the model's and that the model lacks.
    """
    values = {}
    for argument, name in {**own, **FIELDS}.items():
        try:
            values[argument] = wanted[name] if OmegaConf.is_config(wanted) else getattr(wanted, name)
        except (InterpolationKeyError, InterpolationResolutionError):
            raise UserError(
                f"task.precompute_mask_config.{name} is to be the model's, and this model has none; "
                "give it, or leave precompute_mask_config out"
            ) from None
    return values


def check_masks(model: torch.nn.Module, masks, **own: tuple) -> None:
    """Refuse masks that are not for this model.

    Args:
        own: by field, the masks' value and the model's, None for one that it does not have.
    Raises:
        UserError: it takes none, or others.
    """
    if not takes(model, "precomputed_mask"):
        raise UserError("this model draws its masks itself; remove task.precompute_mask_config")
    clones = getattr(getattr(model, "cfg", None), "clone_batch", None)
    for name, (ours, theirs) in {"clone_batch": (masks.clones, clones), **own}.items():
        if theirs is not None and ours != theirs:
            raise UserError(
                f"task.precompute_mask_config.{name}={ours} and the model's is {theirs}; leave it out, then it is that"
            )
