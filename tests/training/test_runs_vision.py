"""Whole runs of 1.0 for images through fairseq's trainer: they repeat on any number of workers, and resume exactly."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny_training import ROOT, scaled_down, train, write_data
from training_state import assert_equal

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError

BASE = ROOT / "examples" / "vision" / "base_imagenet.yaml"
NOISE = {
    "model__attention_dropout": 0.1,
    "model__drop_path": 0.4,
    "model__watch_interval": 1,
    "model__ema_decay": 0.9,
    "model__ema_anneal_end_step": 5,
    "dataset__required_batch_size_multiple": 1,
}
SCOPES = {"whole": {}, "transformer": {"model__ema_transformer_only": True, "model__shared_rel_pos_bias": False}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("vision"), "vision")


def run(data, folder: Path, updates=6, **more):
    cfg = scaled_down(BASE, data, folder, optimization__max_update=updates, **NOISE, **more)
    # a run cut short has the schedule of the whole one
    OmegaConf.update(cfg, "lr_scheduler.max_update", 6, force_add=True)
    train(cfg)
    return read_checkpoint(folder / "checkpoint_last.pt")


@pytest.mark.parametrize("scope", SCOPES)
def test_seeded_runs_agree_bit_for_bit_whatever_the_workers_and_a_resumed_one_with_them(data, tmp_path, scope):
    more = SCOPES[scope]
    whole = run(data, tmp_path / "whole", **more)
    assert_equal(run(data, tmp_path / "workers", dataset__num_workers=2, **more), whole)

    half = run(data, tmp_path / "resumed", updates=3, **more)
    assert half["optimizer_history"][-1]["num_updates"] == 3
    resumed = run(data, tmp_path / "resumed", dataset__num_workers=2, **more)
    assert resumed["optimizer_history"][-1]["num_updates"] == 6
    assert_equal(resumed, whole)

    other = run(data, tmp_path / "other", common__seed=2, **more)
    name = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(other["model"][name], whole["model"][name])


def test_vectors_and_the_class_token_do_not_decay(data, tmp_path):
    state = run(data, tmp_path, updates=2)
    groups = state["last_optimizer_state"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.05]
    spared = sum(value.dim() == 1 or name == "cls_emb" for name, value in state["model"].items() if name != "_ema")
    assert sorted(len(group["params"]) for group in groups if group["weight_decay"] == 0) == [spared]


def test_settings_that_cannot_work_are_one_line_before_any_batch(data, tmp_path):
    with pytest.raises(UserError, match="num_mask_patches=120 must be at least 1 and below 36") as caught:
        run(data, tmp_path, model__num_mask_patches=120)
    assert "\n" not in str(caught.value)
