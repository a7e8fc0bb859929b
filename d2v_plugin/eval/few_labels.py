"""Some labelled images of each class: with all labels even raw pixels do well on easy data."""

from __future__ import annotations

import torch
from torch import Tensor

from d2v_plugin.errors import UserError


def few_of_each(labels: Tensor, per_class: int, seed: int = 1) -> Tensor:
    """Positions of ``per_class`` images of every class, picked at random.

    Args:
        labels: (N,) int64.
        seed: the same picks for the same labels and seed.
    Returns:
        (classes * per_class,) int64, ascending.
    Raises:
        UserError: a class has fewer.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    picked = []
    for label in labels.unique().tolist():
        places = order[labels[order] == label]
        if len(places) < per_class:
            raise UserError(f"class {label} has {len(places)} images, {per_class} are wanted; take fewer")
        picked.append(places[:per_class])
    return torch.cat(picked).sort().values
