"""How long a run takes, from a rate that was measured: given, read from a log, or kept among the results here."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from d2v_plugin.errors import UserError
from d2v_plugin.planning.recipe import UNITS, Recipe, read

# The papers' own, arXiv:2212.07525 (tables of speech and text, figure of image training times). GPU types are not said.
PUBLISHED = {
    "base_librispeech": "63.3 hours, GPUs not stated",
    "large_librilight": "108.0 hours, GPUs not stated",
    "base_librispeech_v2": "43.3 hours on 16 GPUs",
    "large_librilight_v2": "76.7 hours on 64 GPUs",
    "base_books_wiki": "69.4 hours, GPUs not stated",
    "base_books_wiki_v2": "28.2 hours on 16 GPUs, with half of the file's batch",
    "base_imagenet": "47.5 hours, read off a figure, GPUs not stated",
    "base_imagenet_v2": "32 hours for 200 epochs, read off a figure, GPUs not stated",
    "mae_base_imagenet": "50.7 hours for 1,600 epochs, read off a figure, GPUs not stated",
}
RESULTS = "training_*.jsonl"


@dataclass(frozen=True)
class Rate:
    """Units of the data that one GPU gets through in a second, and where that is known from."""

    per_gpu: float
    source: str


def hours(recipe: Recipe, batch: int, gpus: int, rate: Rate) -> float:
    """Of the whole recipe; several GPUs are taken to be as fast as one times their number."""
    seconds = recipe.in_units(batch) / (rate.per_gpu * gpus)
    return recipe.updates * seconds / 3600


def from_log(path: Path, recipe: Recipe) -> Rate:
    """The rate of a run from fairseq's log; its batch from Hydra's record of the configuration beside the log.

    Raises:
        UserError: no such record, no rate in the log, or another kind of data.
    """
    from d2v_plugin.eval.logs import read_log

    curve = [value for _, value in read_log(path).train.get("ups", [])]
    # the first interval warms up
    rates = [value for value in curve[1:] or curve if value > 0]
    if not rates:
        raise UserError(f"{path} has no updates per second; give a hydra_train.log written with log_format=json")
    record = path.parent / ".hydra" / "config.yaml"
    if not record.is_file():
        raise UserError(f"{record} is missing, which says the batch of that run; give the log where it was written")
    run = read(record)
    if run.kind != recipe.kind:
        raise UserError(f"{path} is of a run on {run.kind} and {recipe.name} one on {recipe.kind}; give its own log")
    ups = statistics.median(rates)
    per_gpu = ups * run.in_units(run.batch) / run.gpus
    return Rate(per_gpu, f"{path}: {ups:.3g} updates/s on {run.gpus} GPU{'s' if run.gpus > 1 else ''}")


def measured(recipe: Recipe, gpu: str | None = None, folder: Path | None = None) -> Rate | None:
    """The newest rate of this recipe among the results that are kept here, of a GPU whose name holds ``gpu``."""
    folder = folder or Path(__file__).parents[2] / "benchmarks" / "results"
    rows = []
    for path in sorted(folder.glob(RESULTS)):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["recipe"] == recipe.name and (gpu is None or gpu.lower() in row["gpu"].lower()):
                rows.append(row)
    if not rows:
        return None
    row = max(rows, key=lambda row: row["date"])
    return Rate(row["units_per_second"], f"measured on one {row['gpu']}, {row['date']}, commit {row['commit']}")


def describe(recipe: Recipe, batch: int, gpus: int, rate: Rate | None) -> str:
    """One line about the time."""
    own = PUBLISHED.get(recipe.name)
    published = f"the paper's model took {own} (arXiv:2212.07525)" if own else "the papers say nothing about it"
    if rate is None:
        return (
            f"not measured yet; give --rate ({UNITS[recipe.kind]} a second and GPU) or --log of a run of your own. "
            f"For comparison, {published}"
        )
    total = hours(recipe, batch, gpus, rate)
    text = f"{total:,.1f} for {recipe.updates:,} updates at {rate.per_gpu:,.4g} {UNITS[recipe.kind]}/s and GPU"
    return f"{text} ({rate.source}); {published}"
