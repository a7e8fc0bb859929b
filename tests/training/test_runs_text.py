"""Whole runs of 1.0 for text through fairseq's trainer: they repeat on any number of workers, and resume exactly."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny_training import ROOT, scaled_down, train, write_data
from training_state import assert_equal

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError

PATH = ROOT / "examples" / "text" / "base_books_wiki.yaml"
UPDATES = 9
SETTINGS = {
    "model__transformer__encoder__layerdrop": 0.3,
    "model__watch_interval": 1,
    "model__ema_anneal_end_step": 5,
    "task__mask_stdev": 1.0,
    "task__random_token_prob": 0.1,
    "task__leave_unmasked_prob": 0.1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("text"), "text")


def run(data, folder: Path, updates=UPDATES, **more):
    cfg = scaled_down(PATH, data, folder, optimization__max_update=updates, **SETTINGS, **more)
    # a run cut short has the schedule of the whole one
    OmegaConf.update(cfg, "lr_scheduler.max_update", UPDATES, force_add=True)
    train(cfg)
    return read_checkpoint(folder / "checkpoint_last.pt")


def test_seeded_runs_agree_bit_for_bit_whatever_the_workers_and_a_resumed_one_with_them(data, tmp_path):
    whole = run(data, tmp_path / "whole")
    assert whole["extra_state"]["train_iterator"]["epoch"] > 1  # masks of two epochs
    assert_equal(run(data, tmp_path / "workers", dataset__num_workers=2), whole)

    half = run(data, tmp_path / "resumed", updates=4)
    assert half["optimizer_history"][-1]["num_updates"] == 4
    resumed = run(data, tmp_path / "resumed")
    assert resumed["optimizer_history"][-1]["num_updates"] == UPDATES
    assert_equal(resumed, whole)

    other = run(data, tmp_path / "other", common__seed=2)
    name = "encoder.sentence_encoder.layers.0.fc1.weight"
    assert not torch.equal(other["model"][name], whole["model"][name])


def test_bad_settings_end_before_the_first_update(data, tmp_path):
    for more, line in (
        ({"model__average_top_k_layers": 3}, "average_top_k_layers=3 must lie between 1 and .*layers, which is 2"),
        ({"task__tokens_per_sample": 65}, "tokens_per_sample=65 is beyond model.transformer.max_source_positions=64"),
        ({"task__include_target_tokens": False}, "task.include_target_tokens=true"),
    ):
        with pytest.raises(UserError, match=line) as caught:
            train(scaled_down(PATH, data, tmp_path, **more))
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("checkpoint*"))
