"""Mean average precision of multi-label predictions, over a whole set at once."""

import numpy as np


def average_precision(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Precision at each threshold, weighted by the recall it adds: ``sum_n (R_n - R_{n-1}) P_n``.

    Equal scores share one threshold, so their order does not matter.

    Args:
        scores: (N,), higher is likelier.
        wanted: (N,) bool, at least one True.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(wanted[order])
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each run of equal scores
    added = np.diff(hits[last], prepend=0)
    return float((added * hits[last] / (last + 1)).sum() / hits[-1])


def mean_average_precision(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Mean over the classes that occur, since the others have no precision to speak of; NaN where none does.

    Args:
        scores, wanted: (N, classes).
    """
    wanted = np.asarray(wanted) > 0.5
    occurring = np.flatnonzero(wanted.any(0))
    if not len(occurring):
        return float("nan")
    return float(np.mean([average_precision(scores[:, k], wanted[:, k]) for k in occurring]))
