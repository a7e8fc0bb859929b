"""The pre-trained network that a fine-tuned model is built on.

It is built from the configuration that its checkpoint carries. The fine-tuned model keeps that configuration in its
own, so that its checkpoints can be loaded when the file of pre-training is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.speech_settings import normalized_in_pretraining
from d2v_plugin.rebuild import built, check_modality, configuration, load_weights

# of a configuration: what a model is built from, and the parts that its fields may refer to
PARTS = ("model", "task", "common", "optimization")
# where the models keep the width of their features
WIDTHS = ("embed_dim", "encoder_embed_dim", "transformer.encoder.embed_dim")


@dataclass
class Body:
    """A pre-trained network without teacher and decoders.

    ``cfg``: the parts of the configuration of pre-training that build it, as changed for fine-tuning.
    ``dim``: C of its features.
    """

    model: nn.Module
    cfg: Any
    name: str
    dim: int


def pretrained_path(cfg: Any, saved: Any) -> str | None:
    """``model.model_path`` of a fine-tuning model; None where ``saved``, see ``load_body``, is there.

    Raises:
        UserError: neither is.
    """
    from omegaconf import OmegaConf

    if saved:
        return None
    if (OmegaConf.is_config(cfg) and OmegaConf.is_missing(cfg, "model_path")) or cfg.model_path in (None, "", "???"):
        raise UserError(
            "model.model_path is not set; give a checkpoint of pre-training, model.model_path=FILE.pt (from scratch, "
            "too, for its shape: model.no_pretrained_weights=true)"
        )
    return cfg.model_path


def load_body(
    path: str | os.PathLike,
    saved: Any = None,
    *,
    field: str = "model.model_path",
    kinds: Sequence[str] = ("data2vec_multi",),
    modality: str | None = None,
    task: Any = None,
    normalize: bool | None = None,
    weights: bool = True,
    adjust: Callable[[Any], None] | None = None,
    before_load: Callable[[nn.Module, dict[str, Tensor]], None] | None = None,
) -> Body:
    """Build the network of pre-training and load its weights.

    Args:
        path: checkpoint of pre-training; read as data, so it cannot run code.
        saved: ``Body.cfg`` of an earlier call, as the fine-tuned checkpoint carries it. Then no file is read and the
            weights stay random, since the fine-tuned ones are about to be loaded.
        field: the key that ``path`` came from, for messages.
        kinds: names of models that will do.
        modality: of a ``data2vec_multi``: "AUDIO", "IMAGE", "TEXT" or a registered one.
        task: stands in for the task of pre-training: ``source_dictionary`` for text.
        normalize: whether fine-tuning normalises its recordings; must be as in pre-training.
        weights: False keeps random weights, to train from scratch in the same shape.
        adjust: changes the configuration of the model before it is built.
        before_load: changes the weights, by key, before they are loaded.
    Raises:
        UserError: one line on what is wrong and what to change.
    """
    from omegaconf import OmegaConf, open_dict

    state = None
    if saved is None:
        state = read_checkpoint(path, keys=("model",))
        cfg = configuration(state, path)
        cfg = OmegaConf.masked_copy(cfg, [part for part in PARTS if part in cfg])
    else:
        cfg = OmegaConf.create(saved)
    name = str(cfg.model.get("_name") or cfg.model.get("arch"))
    where = f"{field}={path}"
    if name not in kinds:
        raise UserError(
            f"{where} holds a {name} model; give a checkpoint of pre-training with {' or '.join(kinds)} (to go on with "
            "a fine-tuned one, use +checkpoint.init_from=FILE)"
        )
    if name == "data2vec_multi" and modality is not None:
        check_modality(cfg, modality, where)
    if normalize is not None:
        _check_normalization(cfg, normalize, where)
    if adjust is not None:
        with open_dict(cfg):
            adjust(cfg.model)
    # From scratch the weights are those of the run's seed.
    model = built(cfg, task, torch.initial_seed())
    if state is not None and weights:
        values = dict(state["model"])
        if before_load is not None:
            before_load(model, values)
        load_weights(model, values, path)
    if name == "data2vec_multi":
        model.remove_pretraining_modules(modality)
    else:
        model.remove_pretraining_modules()
    return Body(model, cfg, name, _width(cfg.model))


def _check_normalization(cfg, normalize: bool, where: str) -> None:
    trained = normalized_in_pretraining(cfg)
    if trained is not None and trained != bool(normalize):
        raise UserError(
            f"task.normalize={normalize} and {where} was pre-trained with {trained}; set task.normalize={trained}"
        )


def _width(model_cfg) -> int:
    from omegaconf import OmegaConf

    return next(int(found) for key in WIDTHS if (found := OmegaConf.select(model_cfg, key)) is not None)
