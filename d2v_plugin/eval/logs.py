"""fairseq's JSON log lines (``common.log_format=json``) as curves.

Both shapes are read: hydra's ``[2026-01-02 03:04:05,678][train_inner][INFO] - {...}`` and the captured
standard output ``2026-01-02 03:04:05 | INFO | train_inner | {...}``. Lines that are not such records
(start-up, warnings, progress) are passed over; a file without any record is an error.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from d2v_plugin.errors import UserError

_RECORD = re.compile(r"(?:\]\[|\|\s)(?P<source>[\w.\-/]+)(?:\]\[INFO\] - |\s\|\s)(?P<json>\{.*\})\s*$")


@dataclass
class Run:
    """Curves of one log: name -> list of (update, value), from training intervals and from validation."""

    name: str
    train: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    valid: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def _number(value) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _add(curves: dict[str, list[tuple[float, float]]], record: dict, prefix: str) -> None:
    update = _number(record.get(f"{prefix}num_updates"))
    if update is None:
        return
    for key, value in record.items():
        number = _number(value)
        if number is not None and key.startswith(prefix):
            points = curves.setdefault(key.removeprefix(prefix), [])
            # a resumed run writes some updates twice; what was written later holds
            while points and points[-1][0] >= update:
                points.pop()
            points.append((update, number))


def read_log(path: Path, name: str | None = None) -> Run:
    """Read one log file.

    ``train_inner`` lines (every ``log_interval`` updates) give the training curves; end-of-epoch ``train``
    lines are used only where there is no ``train_inner`` line at all, since they repeat the same quantities.
    Validation lines are those whose keys start with the subset's name, as fairseq writes them; of several subsets the
    first, which chooses the best checkpoint, is kept.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read the log {path}: {error.strerror}; give a hydra_train.log") from error
    run, epochs, subset = Run(name or path.stem), {}, None
    for line in text.splitlines():
        match = _RECORD.search(line)
        if match is None:
            continue
        try:
            record = json.loads(match["json"])
        except json.JSONDecodeError:
            # a line cut short by a kill; the rest of the log is still good
            continue
        source = match["source"]
        if source == "train_inner":
            _add(run.train, record, "")
        elif source == "train":
            _add(epochs, record, "train_")
        elif subset in (None, source) and f"{source}_num_updates" in record:
            subset = source
            _add(run.valid, record, f"{source}_")
    run.train = run.train or epochs
    if not run.train and not run.valid:
        raise UserError(f"{path} holds no JSON log line; train with common.log_format=json and give hydra_train.log")
    return run
