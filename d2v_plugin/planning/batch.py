"""How a recipe's batch is divided among other GPUs, so that an update sees as much data as before."""

from __future__ import annotations

import math
from dataclasses import dataclass

from d2v_plugin.errors import UserError
from d2v_plugin.planning.recipe import AUDIO, Recipe

# a share of the batch that is no difference: max_tokens is only the most that a batch may hold
SAME = 1e-3


@dataclass(frozen=True)
class Split:
    """``gpus`` x ``update_freq`` passes of ``micro`` units of the recipe's field make an update."""

    gpus: int
    update_freq: int
    micro: int

    @property
    def batch(self) -> int:
        return self.gpus * self.update_freq * self.micro

    def ratio(self, recipe: Recipe) -> float:
        """Its batch to the recipe's."""
        return self.batch / recipe.batch

    def keeps(self, recipe: Recipe) -> bool:
        return abs(self.ratio(recipe) - 1) <= SAME


def divide(recipe: Recipe, gpus: int, most: float) -> Split:
    """The fewest passes of at most ``most`` units that keep the batch; the nearest batch where none does.

    Args:
        gpus: how many there are.
        most: units of ``recipe.field`` that one pass may have.
    Raises:
        UserError: not even one row fits.
    """
    row = recipe.field_row
    if most < row:
        raise UserError(
            f"not even one row of {recipe.name} fits ({recipe.describe(row)}); give more memory, or shorten the rows "
            f"({SHORTER[recipe.kind]})"
        )
    fewest = max(1, math.ceil(recipe.batch / (gpus * most)))
    found = []
    # twice as many passes are enough to come across a divisor or to show that there is none near
    for passes in range(fewest, 2 * fewest + 1):
        found.append(Split(gpus, passes, _nearest(recipe, recipe.batch / (gpus * passes), most)))
    # rows that are counted can be as many as before; of recordings max_tokens is only the most that a batch may hold
    counted = recipe.kind != AUDIO or recipe.field == "dataset.batch_size"
    exact = [split for split in found if counted and split.batch == recipe.batch]
    kept = exact or [split for split in found if split.keeps(recipe)]
    return kept[0] if kept else min(found, key=lambda split: (abs(split.ratio(recipe) - 1), split.update_freq))


def _nearest(recipe: Recipe, wanted: float, most: float) -> int:
    """Units of ``recipe.field`` nearest to ``wanted`` that a pass can have: a row or more, and at most ``most``."""
    row = recipe.field_row
    if recipe.kind == AUDIO:
        return min(max(round(wanted), row), int(most))
    below = recipe.uncut(min(max(wanted, row), most))
    above = recipe.uncut(min(below + row * (recipe.multiple if below >= row * recipe.multiple else 1), most))
    return min(below, above, key=lambda micro: abs(micro - wanted))


SHORTER = {"audio": "task.max_sample_size", "image": "task.input_size", "text": "task.tokens_per_sample"}


def rates(recipe: Recipe, split: Split) -> tuple[float, float]:
    """The learning rate for a batch that is not the recipe's, by the square root of their ratio and linearly.

    The square root is the rule for Adam and its like (Malladi et al., arXiv:2205.10287), the linear one is for SGD
    (Goyal et al., arXiv:1706.02677). Neither was tried with these recipes.
    """
    ratio = split.ratio(recipe)
    return recipe.lr * math.sqrt(ratio), recipe.lr * ratio


def overrides(recipe: Recipe, split: Split) -> dict[str, object]:
    """Fields and values that turn the recipe into its version for these GPUs, changed ones alone."""
    wanted = {
        "distributed_training.distributed_world_size": (split.gpus, recipe.gpus),
        "optimization.update_freq": ([split.update_freq], [recipe.update_freq]),
        recipe.field: (split.micro, recipe.micro),
    }
    if not split.keeps(recipe):
        scale = rates(recipe, split)[0] / recipe.lr
        for key, rate in recipe.rates.items():
            value = float(f"{scale * rate:.3g}")
            wanted[key] = ([value] if key == "optimization.lr" else value, None)
    return {key: value for key, (value, before) in wanted.items() if value != before}
