"""GLUE's official tab-separated files as samples.

Quotation marks are plain characters there, so no CSV reader is used. A few lines are broken, and are skipped and
counted: with too few or too many columns, not UTF-8, without text, or without a label ("-", which MNLI's source has).
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from d2v_plugin.data.text.corpus import decode
from d2v_plugin.data.text.glue import COLA_COLUMNS, GlueTask, looks_like, plain
from d2v_plugin.data.text.labelled import Sample
from d2v_plugin.errors import UserError

LOOKED_AT = 50
SHOWN = 3
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NO_LABELS = ("test", "test1")
DEV_IDS = ("dev_ids.tsv", "mrpc_dev_ids.tsv")
COLUMNS, TEXT, LABEL = "another number of columns", "without text", "without a label"


@dataclass
class Skipped:
    """Counts lines that cannot be used, tells the first few, and stops when there are too many."""

    limit: int
    kinds: Counter = field(default_factory=Counter)

    def record(self, kind: str, path: Path, line: int) -> None:
        """Raises ``UserError`` beyond ``limit``; -1 is none."""
        self.kinds[kind] += 1
        if 0 <= self.limit < self.kinds.total():
            raise UserError(
                f"{path}:{line}: {kind}, and {self.kinds.total()} lines so far cannot be used where --max-bad-lines "
                f"allows {self.limit}; download the file again, or raise --max-bad-lines"
            )
        if self.kinds.total() <= SHOWN:
            print(f"left out {path}:{line}: {kind}", file=sys.stderr)

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())


def find_folder(source: Path, task: GlueTask) -> Path:
    """``source`` or the folder in it that is named after the task, in any spelling.

    Raises:
        UserError: neither has the task's training file.
    """
    if not source.is_dir():
        raise UserError(f"{source}: this folder does not exist; give the one with GLUE's files")
    named = [path for path in sorted(source.iterdir()) if path.is_dir() and plain(path.name) == plain(task.name)]
    for folder in [*named, source]:
        if any((folder / name).is_file() for name in task.files["train"]):
            return folder
    raise UserError(
        f"{source}: holds no {task.folder}/{task.files['train'][0]}, and no such file of its own; give the folder of "
        f"GLUE or that of the task, or leave {task.name} out: --tasks with the others"
    )


def read_task(folder: Path, task: GlueTask, skipped: Skipped) -> dict[str, list[Sample]]:
    """Samples of each split there is; those of tests have no label.

    Raises:
        UserError: a file is missing, is of another task, or has labels that are none of this one.
    """
    found = {}
    for split, names in task.files.items():
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is not None:
            found[split] = [sample for _, sample in _samples(path, task, split in NO_LABELS, skipped)]
        elif split not in NO_LABELS:
            raise UserError(f"{folder / names[0]} does not exist; GLUE's {task.folder} has it, download it again")
    if task.name == "mrpc" and not (folder / task.files["train"][0]).is_file():
        _divide_mrpc(folder, task, found, skipped)
    for split, samples in found.items():
        if not samples:
            why = skipped if skipped.kinds else "it is empty"
            raise UserError(f"{folder}: no line of the {split} split can be used ({why}); download it again")
    return found


def _divide_mrpc(folder: Path, task: GlueTask, found: dict[str, list[Sample]], skipped: Skipped) -> None:
    """GLUE's development set is a part of Microsoft's training set, by a list of ids that GLUE gives beside it."""
    ids = next((folder / name for name in DEV_IDS if (folder / name).is_file()), None)
    if ids is None:
        print(
            f"{folder}: without {DEV_IDS[0]} the test set of the corpus stands in for GLUE's development set, so "
            "scores are not those of GLUE",
            file=sys.stderr,
        )
        return
    held_out = {tuple(line.split()) for line in ids.read_text(encoding="utf-8").splitlines()}
    rows = list(_samples(folder / task.files["train"][1], task, False, Skipped(-1)))
    found["valid"] = [sample for row, sample in rows if (row["#1 ID"], row["#2 ID"]) in held_out]
    found["train"] = [sample for row, sample in rows if (row["#1 ID"], row["#2 ID"]) not in held_out]


def _rows(path: Path, skipped: Skipped) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, its columns)"""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            text, fault = decode(line.rstrip(b"\r\n"))
            if fault:
                skipped.record(fault, path, number)
            elif text.strip():
                yield number, text.split("\t")


def _samples(path: Path, task: GlueTask, is_test: bool, skipped: Skipped) -> Iterator[tuple[dict[str, str], Sample]]:
    """(columns by name, sample) of each line that can be used."""
    rows = _rows(path, skipped)
    first = [row for _, row in zip(range(LOOKED_AT), (row for _, row in _rows(path, Skipped(-1))), strict=False)]
    if not first:
        raise UserError(f"{path} is empty; download it again")
    names = _column_names(path, task, first, is_test)
    if names == first[0]:
        next(rows)
    for number, row in rows:
        if len(row) != len(names):
            skipped.record(COLUMNS, path, number)
            continue
        values = dict(zip(names, row, strict=True))
        texts = tuple(values[column].strip() for column in task.columns)
        if not all(texts):
            skipped.record(TEXT, path, number)
            continue
        if is_test:
            yield values, Sample(texts, None)
            continue
        written = values[task.label].strip()
        if written in ("", "-"):
            skipped.record(LABEL, path, number)
            continue
        yield values, Sample(texts, _label(path, number, task, written))


def _column_names(path: Path, task: GlueTask, first: list[list[str]], is_test: bool) -> list[str]:
    """Names of the columns of a file.

    Raises:
        UserError: it is not a file of this task.
    """
    needed = {*task.columns} | (set() if is_test else {task.label})
    kind = looks_like(first)
    if kind == task.folder or (kind is None and needed <= set(first[0])):
        return first[0] if task.header or needed <= set(first[0]) else list(COLA_COLUMNS)
    # the test sets of CoLA and SST-2 look alike
    if is_test and needed <= set(first[0]):
        return first[0]
    guess = f"it looks like {kind}" if kind else f"its first line is {' | '.join(first[0])[:80]!r}"
    remedy = f"put {task.folder}'s file there" + (f", or prepare it as {kind}" if kind and kind != "WNLI" else "")
    raise UserError(f"{path} is not a file of {task.folder}: {guess}; {remedy}")


def _label(path: Path, number: int, task: GlueTask, written: str) -> str | float:
    if task.classes is not None:
        if written not in task.classes:
            raise UserError(
                f"{path}:{number}: the label {written[:40]!r} is none of {task.folder}'s ({', '.join(task.classes)}); "
                "is this file of another task?"
            )
        return written
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not 0 <= value <= task.scale:
        raise UserError(
            f"{path}:{number}: the score {written[:40]!r} is no number from 0 to {task.scale:g}, as {task.folder} has; "
            "is this file of another task?"
        )
    return value / task.scale
