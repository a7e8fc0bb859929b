"""Scores of predicted labels and values over a whole set: accuracy, F1, Matthews, Pearson, Spearman.

Labels are scored from their confusion counts, which add up over batches and processes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def confusion(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, K) int64 on their device, ``[label, prediction]``: how often each pair came.

    Args:
        predictions, labels: (N,) int64 in 0 .. K - 1.
        classes: K.
    """
    return torch.bincount(labels * classes + predictions, minlength=classes * classes).view(classes, classes)


def accuracy(counts: np.ndarray) -> float:
    """Share of (K, K) confusion counts on the diagonal; NaN for none."""
    counts = np.asarray(counts, np.float64)
    total = counts.sum()
    return float(np.trace(counts) / total) if total else float("nan")


def f1(counts: np.ndarray, positive: int) -> float:
    """F1 of one class, 2 TP / (2 TP + FP + FN); 0 where the class neither occurs nor is predicted."""
    counts = np.asarray(counts, np.float64)
    hit = counts[positive, positive]
    both = counts[positive].sum() + counts[:, positive].sum()
    return float(2 * hit / both) if both else 0.0


def matthews(counts: np.ndarray) -> float:
    """Matthews correlation of any number of classes; 0 where it is 0 / 0, one class alone being predicted.

    Source: Gorodkin, Comparing two K-category assignments by a K-category correlation coefficient, 2004.
    """
    counts = np.asarray(counts, np.float64)
    total, labels, predictions = counts.sum(), counts.sum(1), counts.sum(0)
    shared = np.trace(counts) * total - labels @ predictions
    spread = np.sqrt((total**2 - predictions @ predictions) * (total**2 - labels @ labels))
    return float(shared / spread) if spread else 0.0


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two (N,) vectors; 0 where one of them is constant or holds what is not finite."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    spread = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / spread) if spread else 0.0


def ranks(values: np.ndarray) -> np.ndarray:
    """(N,) float64: place of each value from 0, the mean of their places for those that are equal."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the ranks of two (N,) vectors; 0 as for :func:`pearson`."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    return pearson(ranks(a), ranks(b))
