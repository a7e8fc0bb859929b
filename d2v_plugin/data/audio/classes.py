"""Labels for classifying recordings: which classes there are, and those of each recording.

Both files are laid out as upstream's. Descriptors are comma-separated, ``number,label[,more]``, one class a line, with
or without a line of column names (AudioSet's ``class_labels_indices.csv``). A label file has one line for each line of
the manifest, ``start<TAB>end<TAB>class numbers``, the numbers separated by commas.
"""

import csv
import os

import numpy as np

from d2v_plugin.data.audio.labels import Labels, lines_of
from d2v_plugin.errors import UserError

COLUMN = 2  # of the class numbers, counted from 0


def read_descriptors(path: str | os.PathLike) -> dict[str, int]:
    """Class numbers by label; the numbers are 0 to N - 1 in any order.

    Raises:
        UserError: missing, or a line that cannot be; one line that names it.
    """
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [(line, row) for line, row in enumerate(csv.reader(file), 1) if any(map(str.strip, row))]
    except FileNotFoundError:
        raise UserError(
            f"{path}: this file does not exist; it lists the classes, one `number,label` a line, and "
            "task.label_descriptors names it"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: descriptors must be comma-separated UTF-8 text ({error})") from None
    if rows and len(rows[0][1]) > 1 and not rows[0][1][0].strip().isdecimal():
        rows = rows[1:]  # column names
    numbers: dict[str, int] = {}
    for line, row in rows:
        if len(row) < 2 or not row[0].strip().isdecimal() or not row[1].strip():
            raise UserError(f"{path}:{line}: expected `number,label`, got {','.join(row)[:80]!r}; correct this line")
        label, number = row[1].strip(), int(row[0])
        if label in numbers:
            raise UserError(f"{path}:{line}: label {label} is there twice; each class has one line")
        numbers[label] = number
    if not numbers:
        raise UserError(f"{path}: names no class; it needs one `number,label` a line")
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise UserError(
            f"{path}: its {len(numbers)} classes must be numbered 0 to {len(numbers) - 1}, each number once; number "
            "them anew"
        )
    return numbers


def load_classes(
    path: str | os.PathLike, classes: int, *, rows: np.ndarray, total: int, manifest_path: str, descriptors: str
) -> Labels:
    """Class numbers of the manifest's kept entries.

    Args:
        classes: how many there are.
        rows: lines of the kept entries (Manifest.rows); total: lines of the manifest (Manifest.total).
        descriptors: the file that says so, for messages.
    Raises:
        UserError: missing file, another number of lines than the manifest, a line without classes, or a class that
            is not there; one line.
    """
    path = os.fspath(path)
    lines = lines_of(path, total, manifest_path)
    pieces, offsets = [], np.zeros(len(rows) + 1, np.int64)
    for position, row in enumerate(rows):
        numbers = _numbers(lines[row], f"{path}:{row + 1}")
        if max(numbers) >= classes:
            raise UserError(
                f"{path}:{row + 1}: class {max(numbers)} is not among the {classes} of {descriptors}, which are "
                f"numbered 0 to {classes - 1}; correct the line, or use the descriptors that it was written for"
            )
        pieces.append(np.array(numbers, np.int32))
        offsets[position + 1] = offsets[position] + len(numbers)
    return Labels(path, np.asarray(rows), np.concatenate(pieces) if pieces else np.zeros(0, np.int32), offsets)


def _numbers(line: str, where: str) -> list[int]:
    fields = line.rstrip("\r\n").split("\t")
    texts = [text.strip() for text in fields[COLUMN].split(",")] if len(fields) > COLUMN else []
    if not texts or texts == [""]:
        raise UserError(
            f"{where}: has no class in its third column; every recording needs one, `start<TAB>end<TAB>4,7`"
        )
    wrong = next((text for text in texts if not text.isdecimal()), None)
    if wrong is not None:
        raise UserError(f"{where}: {wrong!r} is no class number; the third column holds whole numbers, as `4,7`")
    # a class named twice is there once
    return sorted({int(text) for text in texts})


def write_classes(path: str | os.PathLike, lines) -> int:
    """Write ``(start, end, class numbers)`` for each entry of a manifest; returns how many there were."""
    texts = [f"{start}\t{end}\t{','.join(map(str, numbers))}\n" for start, end, numbers in lines]
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(texts)
    return len(texts)
