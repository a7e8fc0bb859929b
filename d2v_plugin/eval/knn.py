"""k nearest neighbours: what class are the examples most like this one?

The vote is the usual one for self-supervised features (Wu et al., "Unsupervised feature learning via non-parametric
instance discrimination", CVPR 2018, arXiv:1805.01978; DINO reports it as well): the k neighbours of highest cosine
similarity s vote for their class with weight exp(s / temperature).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from d2v_plugin.errors import UserError

K = 20
TEMPERATURE = 0.07
ROWS = 1024  # of queries at a time, so that similarities to a million neighbours fit


def knn_predict(
    train: Tensor, labels: Tensor, queries: Tensor, *, k: int = K, temperature: float = TEMPERATURE
) -> Tensor:
    """The class of each query.

    Args:
        train: (N, D) features of examples whose class is known.
        labels: (N,) int64, from 0.
        queries: (Q, D).
        k: how many neighbours vote.
        temperature: the smaller, the more the nearest count.
    Returns:
        (Q,) int64; of classes with equal votes the lowest.
    Raises:
        UserError: more neighbours asked for than there are.
    """
    classes = int(labels.max()) + 1 if len(labels) else 0
    found = []
    for weights, indices in _neighbours(train, queries, k, temperature):
        votes = weights.new_zeros(len(weights), classes).scatter_add_(1, labels[indices], weights)
        found.append(votes.argmax(1))
    return torch.cat(found) if found else labels.new_zeros(0)


def knn_mean(train: Tensor, values: Tensor, queries: Tensor, *, k: int = K, temperature: float = TEMPERATURE) -> Tensor:
    """What each query's neighbours have on average, with the weights of their votes.

    Args:
        train: (N, D) features of what the values are known of.
        values: (N, outputs).
        queries: (Q, D).
    Returns:
        (Q, outputs) fp32.
    Raises:
        UserError: more neighbours asked for than there are.
    """
    known, found = values.float(), []
    for weights, indices in _neighbours(train, queries, k, temperature):
        shares = weights / weights.sum(1, keepdim=True)
        found.append(torch.einsum("qk,qko->qo", shares, known[indices]))
    return torch.cat(found) if found else known.new_zeros(0, known.shape[1])


def _neighbours(train: Tensor, queries: Tensor, k: int, temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, k) weights and positions in ``train`` of the neighbours, some rows of the queries at a time."""
    if not 1 <= k <= len(train):
        raise UserError(f"k must lie between 1 and the {len(train)} labelled examples, got {k}")
    known = torch.nn.functional.normalize(train.float(), dim=1)
    for rows in queries.float().split(ROWS) if len(queries) else ():
        near = (torch.nn.functional.normalize(rows, dim=1) @ known.T).topk(k, dim=1)
        # less the largest, which changes no comparison and keeps the exponential in range
        yield ((near.values - near.values[:, :1]) / temperature).exp(), near.indices


def knn_accuracy(train: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, **options) -> float:
    """Share of the queries whose class ``knn_predict`` tells; ``truth`` (Q,) int64."""
    return accuracy(knn_predict(train, labels, queries, **options), truth)


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Share of equal entries.

    Raises:
        UserError: there are none.
    """
    if len(truth) == 0:
        raise UserError("there is nothing to score; give a split that holds some")
    return float((predicted == truth).double().mean())
