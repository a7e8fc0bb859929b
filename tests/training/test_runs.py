"""Whole runs through fairseq's trainer: they repeat, resume exactly, and stop with advice when they go wrong."""

import pytest
import torch
from tiny_training import ROOT, scaled_down, train, write_data
from training_state import assert_equal

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.method.collapse import CollapseError

BASE = ROOT / "examples" / "speech" / "base_librispeech.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def run(data, folder, **more):
    settings = {
        # steps rather than shares of max_update, so that a run cut short has the schedule of the whole one
        "lr_scheduler__phase_ratio": None,
        "lr_scheduler__warmup_steps": 2,
        "lr_scheduler__hold_steps": 2,
        "lr_scheduler__decay_steps": 2,
        "optimization__max_update": 6,
        "model__ema_anneal_end_step": 5,
        "model__watch_interval": 1,
        "model__dropout": 0.1,
        "model__encoder_layerdrop": 0.5,
        "dataset__max_tokens": 12_000,
        **more,
    }
    train(scaled_down(BASE, data, folder, **settings))
    return read_checkpoint(folder / "checkpoint_last.pt")


def test_two_seeded_runs_agree_bit_for_bit_and_a_resumed_one_agrees_with_them(data, tmp_path):
    whole = run(data, tmp_path / "whole")
    assert_equal(run(data, tmp_path / "again"), whole)

    half = run(data, tmp_path / "resumed", optimization__max_update=3)
    assert half["optimizer_history"][-1]["num_updates"] == 3
    resumed = run(data, tmp_path / "resumed")
    assert resumed["optimizer_history"][-1]["num_updates"] == 6
    assert_equal(resumed, whole)

    other = run(data, tmp_path / "other", common__seed=2)
    assert not torch.equal(other["model"]["mask_emb"], whole["model"]["mask_emb"])


def test_upstreams_task_and_criterion_drive_the_model(data, tmp_path):
    more = {"task___name": "audio_pretraining", "criterion___name": "model", "criterion__log_keys": ["target_var"]}
    state = run(data, tmp_path, **more)
    assert state["optimizer_history"][-1]["criterion_name"] == "ModelCriterion"


@pytest.mark.parametrize("floor, message", [("min_target_var", "teacher's targets"), ("min_pred_var", "predictions")])
def test_a_collapsed_run_saves_and_stops(data, tmp_path, floor, message):
    with pytest.raises(CollapseError, match=f"{message} hardly vary.*Likely causes and remedies"):
        run(data, tmp_path, model__collapse_guard_updates=2, **{f"model__{floor}": 1e6})
    crash = read_checkpoint(tmp_path / "crash.pt")
    assert crash["optimizer_history"][-1]["num_updates"] == 3
    assert not (tmp_path / "checkpoint_last.pt").exists()


def test_a_diverged_run_saves_and_says_why_between_two_looks_of_the_watch(data, tmp_path):
    with pytest.raises(CollapseError, match="the loss is not finite at update 1.*learning rate too high"):
        run(data, tmp_path, model__watch_interval=1000, optimization__lr=[1e30])
    assert (tmp_path / "crash.pt").exists()
