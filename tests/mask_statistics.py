"""Do two samplers of masks draw from one distribution? Numbers per mask, compared by their means.

What is taken from every mask: whether each position is masked, how many are, pairs of positions that are both masked at
every small distance (the autocorrelation), and how many masked runs there are of each length. Masks of different rows
are independent, so the difference of two means over its standard error is a draw from a normal distribution; with a few
hundred such numbers the largest stays below LIMIT in all but about one of a thousand comparisons of equal samplers.
"""

import numpy as np

LIMIT = 5.0
LONGEST_RUN = 16


def numbers(masks, grid):
    """(N, F) float: the numbers above, of N masks.

    Args:
        masks: (N, H * W) bool or 0/1.
        grid: (H, W); time is (1, T).
    """
    masks = np.asarray(masks).astype(np.float64).reshape(-1, *grid)
    H, W = grid
    count = masks.sum((1, 2))
    columns = [*masks.reshape(len(masks), -1).T, count, count**2]
    for down in range(min(H, 5)):
        for right in range(8 if H == 1 else 5):
            if down or right:
                pairs = (masks[:, : H - down, : W - right] * masks[:, down:, right:]).sum((1, 2))
                columns += [pairs, pairs**2]
    columns += list(_runs(masks).T)
    if H > 1:
        columns += list(_runs(masks.swapaxes(1, 2)).T)
    return np.stack(columns, 1)


def distance(ours, theirs):
    """The largest difference between the means of two (N, F) arrays, in standard errors."""
    difference = np.abs(ours.mean(0) - theirs.mean(0))
    error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
    # Numbers that never vary (the exact count) have to be equal; the floor is there for rounding.
    return float((difference / np.maximum(error, 1e-9 + 1e-9 * np.abs(theirs.mean(0)))).max())


def _runs(masks):
    """(N, LONGEST_RUN) how many masked runs of 1, 2, ... cells each mask has along its rows; longer ones go last."""
    N, H, W = masks.shape
    padded = np.zeros((N, H, W + 1), dtype=np.int8)
    padded[..., :W] = masks
    flat = np.concatenate([[0], padded.reshape(-1)])
    edges = np.diff(flat)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    found = np.zeros((N, LONGEST_RUN))
    np.add.at(found, (starts // (H * (W + 1)), np.minimum(ends - starts, LONGEST_RUN) - 1), 1)
    return found
