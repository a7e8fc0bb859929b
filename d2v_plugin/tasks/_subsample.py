"""Training on a share of the data: which part of it."""

import numpy as np

from d2v_plugin.errors import UserError


def check_subsample(cfg) -> None:
    """Raises ``UserError`` for a share that leaves nothing, or is none."""
    if not 0 < cfg.subsample <= 1:
        raise UserError(f"task.subsample must be above 0 and at most 1, got {cfg.subsample}")


def subsampled(count: int, share: float, seed: int) -> np.ndarray:
    """Sorted positions, int64, of ``share`` of ``count`` samples, rounded up; a function of its arguments alone."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: int(np.ceil(count * share))])
