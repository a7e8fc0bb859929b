"""A model out of a fairseq checkpoint: the configuration inside it builds it, and the weights must fit it exactly.

Nothing of the machine that trained it is needed, neither files nor folders, and fairseq's task is not set up: a
stand-in with what the model asks of it is enough.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2v_plugin.errors import UserError
from d2v_plugin.modalities import modality_name
from d2v_plugin.register import register_plugin


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Warnings alone from these loggers, for a while."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
    for logger in levels:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def quiet_fairseq() -> contextlib.AbstractContextManager[None]:
    """fairseq tells about optional packages when imported, and logs whole configurations when it builds a model."""
    return quiet("fairseq")


def configuration(state: dict, path: str | Path):
    """The training configuration as an OmegaConf node; checkpoints of before 2021 hold a Namespace.

    Args:
        state: what ``read_checkpoint`` returned.
        path: for messages.
    """
    from omegaconf import OmegaConf

    if state.get("cfg") is not None:
        return OmegaConf.create(state["cfg"])
    if state.get("args") is not None:
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf

        return convert_namespace_to_omegaconf(state["args"])
    raise UserError(f"{path} has no training configuration, so the model cannot be built; give the file fairseq wrote")


def check_modality(cfg, wanted: str, path: str | Path) -> None:
    """Raises ``UserError`` where a ``data2vec_multi`` file is known to be of another modality."""
    found = cfg.model.get("supported_modality")
    if found is not None and modality_name(found) != wanted:
        raise UserError(f"{path} was trained on {modality_name(found)}; this needs a model of {wanted}")


@quiet_fairseq()
def built(cfg, task: Any = None, seed: int | None = None) -> nn.Module:
    """The model with random weights; the caller's random numbers stay as they were.

    Args:
        cfg: the whole configuration; ``cfg.model`` is used.
        task: stands in for the task and has all that the model asks of it: a dictionary.
        seed: of the weights, 0 by default.
    """
    from fairseq import models

    register_plugin()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        return models.build_model(cfg.model, task, from_checkpoint=True)


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Strictly; the EMA teacher, which only pre-training needs, is left out, in ``model`` as in ``weights``.

    Raises:
        UserError: they do not fit, or are not finite.
    """
    weights = {key: value for key, value in weights.items() if key.rpartition(".")[2] != "_ema"}
    if getattr(model, "ema", None) is not None:
        model.ema = None
    try:
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, UserError) as error:  # torch's own, or what the plugin's models make of it
        reason = " ".join(str(error).split())
        raise UserError(
            f"the weights of {path} do not fit the model its configuration describes: {reason[:300]}"
        ) from error
    broken = next((key for key, value in model.named_parameters() if not bool(value.isfinite().all())), None)
    if broken is not None:
        raise UserError(
            f"the weights of {path} are NaN or infinite (first in {broken}), so it answers nothing; its training "
            "diverged, take an earlier checkpoint"
        )
