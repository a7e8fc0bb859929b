"""One recipe on given hardware: batch, memory, time, and the overrides that make it so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from d2v_plugin.errors import UserError
from d2v_plugin.planning.batch import Split, divide, overrides, rates
from d2v_plugin.planning.hours import Rate, describe
from d2v_plugin.planning.memory import GB, VOCABULARY, Memory, count
from d2v_plugin.planning.recipe import ROWS, Recipe


@dataclass(frozen=True)
class Plan:
    """``memory`` is None where --micro said what fits."""

    recipe: Recipe
    split: Split
    card: float
    memory: Memory | None

    @property
    def rows(self) -> float:
        """Of the longest kind in one pass."""
        return self.split.micro / self.recipe.field_row


def make(
    recipe: Recipe,
    gpus: int,
    card_gb: float,
    micro: int | None = None,
    vocabulary: int = VOCABULARY,
    counter: Callable[..., Memory] = count,
) -> Plan:
    """Plan a recipe.

    Args:
        card_gb: memory of one GPU, 10^9 bytes.
        micro: units of the recipe's field that fit into one pass; None counts them.
    Raises:
        UserError: numbers that cannot be, or nothing fits.
    """
    if gpus < 1:
        raise UserError(f"--gpus must be at least 1, got {gpus}")
    if not card_gb > 0:
        raise UserError(f"--memory must be above 0, got {card_gb:g}; it is the memory of one GPU in GB")
    if micro is not None:
        return Plan(recipe, divide(recipe, gpus, micro), card_gb * GB, None)
    memory = counter(recipe, gpus, vocabulary)
    rows = memory.most_rows(card_gb * GB)
    if rows < 1:
        raise UserError(
            f"{recipe.name} does not fit into {card_gb:g} GB: {memory.total(1) / GB:.1f} GB of tensors with a single "
            f"row in a pass ({recipe.describe(recipe.field_row)}); give more memory, or shorten the rows"
        )
    # rows are whole, but for audio: a pass of shorter recordings may hold as many samples as fit
    most = rows * recipe.field_row if recipe.field == "dataset.max_tokens" else int(rows)
    return Plan(recipe, divide(recipe, gpus, most), card_gb * GB, memory)


def lines(plan: Plan, rate: Rate | None) -> list[str]:
    """The plan for people."""
    recipe, split = plan.recipe, plan.split
    found = [
        f"{recipe.name}: {recipe.path}",
        f"  recipe    {recipe.describe(recipe.batch)} an update: {recipe.gpus} GPUs x {recipe.update_freq} "
        f"x {recipe.describe(recipe.micro)}, learning rate {recipe.lr:g}",
    ]
    found += [f"  memory    {text}" for text in _memory_lines(plan)]
    kept = "as in the recipe" if split.keeps(recipe) else f"{100 * (split.ratio(recipe) - 1):+.1f} % of the recipe's"
    passes = f"{split.update_freq} passes" if split.update_freq > 1 else "1 pass"
    gpus = f"{split.gpus} GPU{'s' if split.gpus > 1 else ''}"
    found.append(
        f"  here      {recipe.describe(split.batch)} an update, {kept}: {gpus} x {passes} "
        f"x {recipe.describe(split.micro)}"
    )
    found.append(f"  rate      {_rate_line(plan)}")
    found.append(f"  hours     {describe(recipe, split.batch, split.gpus, rate)}")
    found.append(f"  add       {words(plan) or 'nothing, the recipe is for this hardware'}")
    return found


def _memory_lines(plan: Plan) -> list[str]:
    memory, recipe = plan.memory, plan.recipe
    if memory is None:
        return [f"not counted, --micro says what fits: {recipe.describe(plan.split.micro)} a pass"]
    fixed = ", ".join(f"{name} {size / GB:.2f}" for name, size in memory.fixed.items())
    return [
        f"{memory.parameters / 1e6:.1f} M parameters, {memory.teacher / 1e6:.1f} M in the teacher; GB: {fixed}",
        f"{memory.per_row / GB:.2f} GB for each of the {ROWS[recipe.kind]} at full length, so "
        f"{memory.total(plan.rows) / GB:.1f} GB of tensors in {plan.card / GB:g} GB; counted from shapes, without what "
        "the GPU's libraries and allocator need",
    ]


def _rate_line(plan: Plan) -> str:
    if plan.split.keeps(plan.recipe):
        return f"{plan.recipe.lr:g}, as in the recipe"
    root, linear = rates(plan.recipe, plan.split)
    return (
        f"the batch cannot be kept: {root:.3g} by the square root of the ratio, the rule for Adam ({linear:.3g} "
        "linearly); neither was tried"
    )


def words(plan: Plan) -> str:
    """The overrides for the command line."""
    found = overrides(plan.recipe, plan.split)
    return " ".join(f"{key}={_value(value)}" for key, value in found.items())


def _value(value: object) -> str:
    return f"[{value[0]}]" if isinstance(value, list) else str(value)


def name_of(plan: Plan) -> str:
    """``<recipe>_<gpus>x<gb>gb``."""
    return f"{plan.recipe.name}_{plan.split.gpus}x{plan.card / GB:g}gb"


def write(plan: Plan) -> Path:
    """Keep the overrides as an option of the config group ``hardware`` beside the recipe; returns the file.

    ``fairseq-hydra-train ... +hardware=<recipe>_<gpus>x<gb>gb`` uses it.
    """
    recipe, split = plan.recipe, plan.split
    folder = recipe.path.parent / "hardware"
    folder.mkdir(exist_ok=True)
    groups: dict[str, list[str]] = {}
    for key, value in overrides(recipe, split).items():
        group, field = key.split(".")
        groups.setdefault(group, []).append(f"  {field}: {_value(value)}\n")
    how = f"--micro {split.micro} " if plan.memory is None else ""
    head = [
        "# @package _global_",
        f"# {recipe.name} on {split.gpus} x {plan.card / GB:g} GB: add +hardware={name_of(plan)}",
        f"# An update sees {recipe.describe(split.batch)}; {recipe.describe(recipe.batch)} in the recipe.",
        f"# Written by: d2v plan --config {recipe.name} --gpus {split.gpus} --memory {plan.card / GB:g} {how}--write",
    ]
    body = "".join(f"\n{group}:\n{''.join(fields)}" for group, fields in groups.items())
    path = folder / f"{name_of(plan)}.yaml"
    path.write_text("\n".join(head) + "\n" + (body or "\n{}\n"), encoding="utf-8")
    return path
