"""Tiny image models of upstream's with weights that nothing initialised, as its trainer would have saved them."""

import torch
import upstream
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf
from tiny_multi import root_config
from tiny_vision import TINY as VISION
from tiny_vision import oracle

SIZE = 24
MAE = {
    "_name": "mae",
    "input_size": SIZE,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "decoder_embed_dim": 32,
    "decoder_depth": 1,
    "decoder_num_heads": 4,
}
TASK = {"data": "/not/on/this/machine", "input_size": SIZE}


def multi(**settings):
    """``(state, build)``: of a ``data2vec_multi`` for images; ``build(model_cfg)`` makes such a model."""
    module = upstream.load_v2("models.data2vec2")

    def build(cfg):
        root = OmegaConf.create({"common": {"seed": 1}, "optimization": {"max_update": 100}, "model": cfg})
        with upstream.current_stack():
            cfg = merge_with_parent(module.Data2VecMultiConfig(), root.model, remove_missing=True)
            return module.Data2VecMultiModel.build_model(cfg)

    root = root_config("IMAGE", **settings)
    root.model = merge_with_parent(module.Data2VecMultiConfig(), root.model)
    model_cfg = OmegaConf.to_container(root, resolve=True, enum_to_str=True)["model"]
    return _state(model_cfg, build, "mae_image_pretraining"), build


def mae(**settings):
    """The same of a ``mae``."""
    module = upstream.load_v2("models.mae")

    def build(cfg):
        with upstream.current_stack():
            return module.MaeModel(merge_with_parent(module.MaeConfig(), cfg, remove_missing=True))

    return _state({**MAE, **settings}, build, "mae_image_pretraining"), build


def vision(**settings):
    """The same of a ``data2vec_vision``."""

    def build(cfg):
        return oracle(**settings)

    return _state({"_name": "data2vec_vision", **VISION, **settings}, build, "image_pretraining"), build


def _state(model_cfg, build, task):
    model = build(OmegaConf.create(model_cfg))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    cfg = {"common": {"seed": 1}, "model": model_cfg, "task": {"_name": task, **TASK}}
    return {"cfg": cfg, "model": model.state_dict()}
