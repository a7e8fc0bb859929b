"""Rates and decays by layer, and what each optimiser makes of them."""

import pytest
import torch
from fairseq.optim import build_optimizer
from fairseq.optim.composite import FairseqCompositeOptimizer
from omegaconf import OmegaConf
from torch import nn

import d2v_plugin.optim.adamw  # noqa: F401
from d2v_plugin.fine_tuning.layer_decay import decay_blocks, decay_vit, forget_groups, spare_vectors

ADAM = {"use_old_adam": False, "fp16_adam_stats": False}


class Vit(nn.Module):
    """The names of MAE's parts."""

    def __init__(self, depth=3):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.patch_embed = nn.Linear(4, 4)
        self.rel_pos_bias = nn.Linear(4, 1, bias=False)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        self.norm = nn.LayerNorm(4)


def asked(model):
    return {name: p.optim_overrides["optimizer"] for name, p in model.named_parameters()}


def test_blocks_alone_slow_down_in_the_rule_of_2():
    model = Vit()
    decay_blocks(model, model.blocks, 0.5)
    found = asked(model)
    for n, scale in enumerate((0.125, 0.25, 0.5)):
        assert found[f"blocks.{n}.weight"] == {"lr_scale": scale}
        assert found[f"blocks.{n}.bias"] == {"lr_scale": scale, "weight_decay_scale": 0}
    assert found["patch_embed.weight"] == found["cls_token"] == {}
    assert found["norm.weight"] == found["patch_embed.bias"] == {"weight_decay_scale": 0}
    decay_blocks(model, model.blocks, 0.5, keep_exemption=False)
    assert asked(model)["blocks.0.bias"] == {"lr_scale": 0.125}
    for off in (0, 1):
        decay_blocks(model, model.blocks, off)
        assert asked(model)["blocks.0.weight"] == {} and asked(model)["blocks.0.bias"] == {"weight_decay_scale": 0}


def test_what_lies_below_slows_down_too_in_the_rule_of_vits():
    model = Vit()
    decay_vit(model.named_parameters(), 3, 0.5)
    scales = {name: override["lr_scale"] for name, override in asked(model).items()}
    assert scales["cls_token"] == scales["patch_embed.weight"] == 0.5**4
    assert [scales[f"blocks.{n}.weight"] for n in range(3)] == [0.125, 0.25, 0.5]
    assert scales["rel_pos_bias.weight"] == 0.5 and scales["norm.weight"] == 1
    decay_vit(model.named_parameters(), 3, 0)
    assert asked(model)["cls_token"] == {} and asked(model)["norm.bias"] == {"weight_decay_scale": 0}


def test_heads_and_groups():
    head = nn.Linear(4, 2)
    head.weight.param_group = "with_decay"
    spare_vectors(head)
    spare_vectors(None)
    assert not hasattr(head.weight, "optim_overrides")
    assert head.bias.optim_overrides == {"optimizer": {"weight_decay_scale": 0}}
    forget_groups(head)
    assert not hasattr(head.weight, "param_group")


@pytest.mark.parametrize("name", ["d2v_adamw", "composite of d2v_adamw", "composite of adam"])
def test_optimisers_give_the_same_rates(name, monkeypatch):
    monkeypatch.setattr(FairseqCompositeOptimizer, "optimizers", {})
    monkeypatch.setattr(FairseqCompositeOptimizer, "lr_schedulers", {})
    model = Vit()
    decay_vit(model.named_parameters(), 3, 0.5)
    wanted = {id(p): 0.01 * p.optim_overrides["optimizer"]["lr_scale"] for p in model.parameters()}
    kind = name.split()[-1]
    own = {"use_apex": False, "weight_decay_overrides": True} if kind == "d2v_adamw" else ADAM
    single = {"_name": kind, "lr": [0.01], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-8, "weight_decay": 0.1, **own}
    single["tpu"] = False
    root = {"common": {"tpu": False, "fp16": False, "memory_efficient_fp16": False}, "optimizer": single}
    if name.startswith("composite"):
        scheduler = {"_name": "fixed", "force_anneal": None, "lr_shrink": 0.1, "warmup_updates": 0, "lr": [0.01]}
        groups = {"default": {"optimizer": single, "lr_scheduler": scheduler, "lr_float": 0.01}}
        root["optimizer"] = {"_name": "composite", "groups": groups, "dynamic_groups": True}
    optimizer = build_optimizer(OmegaConf.create(root).optimizer, list(model.parameters()))
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found == pytest.approx(wanted)
