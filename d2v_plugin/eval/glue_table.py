"""GLUE's table out of the runs of ``d2v glue run``, averaged as the data2vec papers do.

A task's score is Matthews' correlation for CoLA, the mean of accuracy and F1 for MRPC and QQP, the mean of Pearson's
and Spearman's correlations for STS-B, and accuracy for the others; matched and mismatched MNLI are averaged into one
score; the average is the mean of the eight. Source: tables of arXiv:2202.03555 and arXiv:2212.07525, whose means this
gives.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from d2v_plugin.data.text.glue import TASKS
from d2v_plugin.errors import UserError

RESULT = "result.json"
# as the papers print them
ORDER = ("mnli", "qnli", "rte", "mrpc", "qqp", "sts_b", "cola", "sst_2")
MISMATCHED = "mismatched_accuracy"
NAMES = {
    "mcc": "Matthews",
    "accuracy": "accuracy",
    "acc_and_f1": "accuracy and F1",
    "pearson_and_spearman": "Pearson and Spearman",
}


def read_results(out: str | os.PathLike) -> list[dict]:
    """What each run below ``out`` that ended has written.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    found = []
    for path in sorted(Path(out).glob(f"*/*/{RESULT}")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found.append({key: result[key] for key in ("task", "lr", "seed", "scores", "update")})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a result of `d2v glue run`; delete it and run that again") from error
    if not found:
        raise UserError(f"{out}: no run has ended here; `d2v glue run` makes them")
    return found


def score_of(task: str, scores: dict[str, float]) -> float:
    """The score of a run that counts, per cent; for MNLI the mean of matched and mismatched."""
    score = scores[TASKS[task].metric]
    return (score + scores[MISMATCHED]) / 2 if task == "mnli" else score


def average(scores: dict[str, float]) -> float | None:
    """Mean over the eight tasks of ``{task: score}``; None where one is missing."""
    return statistics.fmean(scores[name] for name in ORDER) if scores.keys() >= set(ORDER) else None


def summary(results: Sequence[dict], mean: bool = False, one_rate: bool = False) -> dict:
    """The best of each task.

    Args:
        results: of :func:`read_results`.
        mean: of each learning rate the mean over its seeds, and of these the best; otherwise the best run.
        one_rate: the same learning rate for all tasks, that of the best average, as in the paper of 1.0.
    Returns:
        ``tasks``: by name ``score``, ``scores``, ``lr``, ``seeds``, ``runs``, and ``std`` over seeds with ``mean``;
        ``average``, or None where a task is missing; ``missing``.
    Raises:
        UserError: with ``one_rate``, none that all eight tasks have.
    """
    if one_rate:
        rates = {result["lr"] for result in results}
        found = [summary([result for result in results if result["lr"] == rate], mean) for rate in sorted(rates)]
        whole = [each for each in found if each["average"] is not None]
        if not whole:
            raise UserError("no learning rate has runs of all eight tasks; run the others, or leave --one-rate out")
        return max(whole, key=lambda each: each["average"])
    by_task: dict[str, list[dict]] = defaultdict(list)
    for result in results:
        by_task[result["task"]].append(result)
    tasks = {}
    for name in (name for name in ORDER if name in by_task):
        runs, candidates = by_task[name], defaultdict(list)
        for run in runs:
            candidates[run["lr"] if mean else (run["lr"], run["seed"])].append(run)
        # the checkpoint of a run is chosen by its metric, and so is the run
        metric = TASKS[name].metric
        best = max(candidates.values(), key=lambda group: statistics.fmean(r["scores"][metric] for r in group))
        scores = {key: statistics.fmean(run["scores"][key] for run in best) for key in best[0]["scores"]}
        found = [score_of(name, run["scores"]) for run in best]
        tasks[name] = {
            "score": statistics.fmean(found),
            "scores": scores,
            "lr": best[0]["lr"],
            "seeds": [run["seed"] for run in best],
            "runs": len(runs),
        }
        if mean:
            tasks[name]["std"] = statistics.stdev(found) if len(found) > 1 else 0.0
    scores = {name: found["score"] for name, found in tasks.items()}
    return {"tasks": tasks, "average": average(scores), "missing": [name for name in ORDER if name not in tasks]}


def format_table(found: dict) -> str:
    """``summary`` as lines of text."""
    rows = [("task", "score", "", "rate", "seeds", "runs")]
    for name, task in found["tasks"].items():
        score = f"{task['score']:.1f}"
        score += f" +- {task['std']:.1f}" if "std" in task else ""
        what = NAMES[TASKS[name].metric]
        if name == "mnli":
            what += f" {task['scores']['accuracy']:.1f}/{task['scores'][MISMATCHED]:.1f} (matched/mismatched)"
        seeds = " ".join(map(str, task["seeds"]))
        rows.append((TASKS[name].folder, score, what, task["lr"], seeds, str(task["runs"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if found["average"] is not None:
        lines.append(f"average of the eight tasks, MNLI as one: {found['average']:.1f}")
    else:
        lines.append(f"no average, tasks are missing: {', '.join(TASKS[name].folder for name in found['missing'])}")
    return "\n".join(lines)
