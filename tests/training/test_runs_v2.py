"""Whole runs of 2.0 through fairseq's trainer: they repeat on any number of workers, and resume exactly."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny_training import ROOT, scaled_down, train, write_data
from training_state import assert_equal

from d2v_plugin.checkpoints import read_checkpoint

FILES = {
    "speech": "speech/base_librispeech_v2.yaml",
    "vision": "vision/base_imagenet_v2.yaml",
    "text": "text/base_books_wiki_v2.yaml",
}
NOISE = {
    "model__encoder_dropout": 0.1,
    "model__attention_dropout": 0.1,
    "model__layerdrop": 0.3,
    "model__end_drop_path_rate": 0.3,
    "model__watch_interval": 1,
    "model__ema_anneal_end_step": 5,
}


@pytest.fixture(scope="module", params=FILES)
def data(request, tmp_path_factory):
    """``(YAML file, its data)``"""
    folder = write_data(tmp_path_factory.mktemp(request.param), request.param)
    return ROOT / "examples" / FILES[request.param], folder


def run(data, folder: Path, updates=6, **more):
    path, source = data
    cfg = scaled_down(path, source, folder, optimization__max_update=updates, **NOISE, **more)
    groups = cfg.optimizer.get("groups")
    for settings in [cfg, *groups.values()] if groups else [cfg]:
        if "warmup_updates" in settings.get("lr_scheduler", {}):
            # a run cut short has the schedule of the whole one
            OmegaConf.update(settings, "lr_scheduler.max_update", 6, force_add=True)
    train(cfg)
    return read_checkpoint(folder / "checkpoint_last.pt")


def test_seeded_runs_agree_bit_for_bit_whatever_the_workers_and_a_resumed_one_with_them(data, tmp_path):
    whole = run(data, tmp_path / "whole")
    assert_equal(run(data, tmp_path / "workers", dataset__num_workers=2), whole)

    half = run(data, tmp_path / "resumed", updates=3)
    assert half["optimizer_history"][-1]["num_updates"] == 3
    resumed = run(data, tmp_path / "resumed")
    assert resumed["optimizer_history"][-1]["num_updates"] == 6
    assert_equal(resumed, whole)

    other = run(data, tmp_path / "other", common__seed=2)
    name = next(key for key in whole["model"] if key.endswith("qkv.weight"))
    assert not torch.equal(other["model"][name], whole["model"][name])
