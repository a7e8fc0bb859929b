"""Comparing what two trainings saved."""

import torch


def flatten(state, prefix=""):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif torch.is_tensor(value):
            yield f"{prefix}{key}", value


def assert_equal(a, b):
    for part in ("model", "last_optimizer_state"):
        ours, theirs = dict(flatten(a[part])), dict(flatten(b[part]))
        assert ours.keys() == theirs.keys() and ours
        assert any("_ema" in key for key in ours) or part != "model"
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), key
