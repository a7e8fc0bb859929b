"""AudioSet's tables of clips as label files beside a manifest.

A table (``balanced_train_segments.csv`` and its like) has comments and lines
``YouTube id, start, end, "label,label"``; recordings are named by the id.
"""

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from d2v_plugin.data.audio.classes import write_classes
from d2v_plugin.data.audio.manifest import load_manifest
from d2v_plugin.errors import UserError

Clip = tuple[str, str, list[int]]  # start and end in seconds as the table spells them, class numbers


def read_clips(path: str | os.PathLike, classes: Mapping[str, int]) -> dict[str, Clip]:
    """The clips of a table by id.

    Args:
        classes: class numbers by label.
    Raises:
        UserError: missing, or a line that cannot be read; one line.
    """
    path = os.fspath(path)
    clips: dict[str, Clip] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not line.lstrip().startswith("#"):
                    (row,) = csv.reader([line.strip()], skipinitialspace=True)
                    name, clip = _clip(row, classes, f"{path}:{number}")
                    clips[name] = clip
    except FileNotFoundError:
        raise UserError(f"{path}: this table does not exist; give AudioSet's .csv of the split") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: the table must be comma-separated UTF-8 text ({error})") from None
    if not clips:
        raise UserError(f'{path}: names no clip; its lines are `id, start, end, "label,label"`')
    return clips


def _clip(row: list[str], classes: Mapping[str, int], where: str) -> tuple[str, Clip]:
    if len(row) < 4:
        raise UserError(f'{where}: expected `id, start, end, "label,label"`, got {", ".join(row)[:80]!r}; correct it')
    # Without the quotes, labels are columns of their own.
    labels = [label.strip(' "') for field in row[3:] for label in field.split(",")]
    unknown = next((label for label in labels if label not in classes), None)
    if unknown is not None:
        raise UserError(f"{where}: label {unknown!r} is not in the descriptors; give those of this table")
    return row[0].strip(), (row[1].strip(), row[2].strip(), sorted({classes[label] for label in labels}))


def write_labels_for(manifest_path: str | os.PathLike, clips: Mapping[str, Clip], dest: str | os.PathLike) -> int:
    """One line of labels for each entry of the manifest, found by its file's name; returns how many.

    Some collections put a ``Y`` before the id.

    Raises:
        UserError: entries that the table does not have.
    """
    manifest = load_manifest(manifest_path)
    if len(manifest) != manifest.total:
        # labels go by line, so nothing may be left out
        raise UserError(
            f"{manifest_path}: {manifest.total - len(manifest)} entries have 0 frames; write it anew without them"
        )
    found, lost = [], []
    for index in range(len(manifest)):
        stem = Path(manifest.name(index)).stem
        clip = clips.get(stem) or (clips.get(stem[1:]) if stem.startswith("Y") else None)
        (lost if clip is None else found).append(stem if clip is None else clip)
    if lost:
        raise UserError(
            f"{manifest_path}: {len(lost)} of its {manifest.total} entries are not in the table (first {lost[0]}); "
            "give the table of this split, with recordings named by their id"
        )
    return write_classes(dest, found)
