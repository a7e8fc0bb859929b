"""Label files for CTC: one line of space-separated symbols for each line of the manifest.

Symbols are stored as the narrowest integers that hold the dictionary, in one array: 960 hours of letters take 50 MB.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from d2v_plugin.errors import UserError


@dataclass(frozen=True)
class Labels:
    """Symbol indices of N utterances. ``rows`` are the label file's lines, counted from 0."""

    path: str
    rows: np.ndarray  # (N,) int64
    tokens: np.ndarray  # all utterances end to end
    offsets: np.ndarray  # (N + 1,) int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, symbols per utterance."""
        return np.diff(self.offsets)

    def frames_needed(self) -> np.ndarray:
        """(N,) int64: CTC emits one symbol a frame, and a blank between two equal neighbours."""
        repeats = np.zeros(len(self.tokens) + 1, np.int64)
        if len(self.tokens) > 1:
            repeats[2:] = np.cumsum(self.tokens[1:] == self.tokens[:-1])
        # repeats[j] counts equal neighbours among the first j symbols; those across two utterances must not count
        first = np.minimum(self.offsets[:-1] + 1, self.offsets[1:])
        return self.lengths + repeats[self.offsets[1:]] - repeats[first]


def load_labels(
    path: str | os.PathLike,
    symbols: Mapping[str, int],
    *,
    rows: np.ndarray,
    total: int,
    manifest_path: str,
    dictionary_path: str,
    unknown: int | None = None,
) -> Labels:
    """Read the label lines that belong to the manifest's kept entries.

    Args:
        symbols: dictionary, symbol to index.
        rows: lines of the kept entries (Manifest.rows); total: lines of the manifest (Manifest.total).
        unknown: index for symbols outside the dictionary; None makes them an error.
    Raises:
        UserError: missing file, another number of lines than the manifest, or an unknown symbol; one line.
    """
    path = os.fspath(path)
    lines = lines_of(path, total, manifest_path)
    dtype = np.min_scalar_type(max([unknown or 0, *symbols.values()]))
    pieces, offsets = [], np.zeros(len(rows) + 1, np.int64)
    for position, row in enumerate(rows):
        words = lines[row].split()
        indices = [symbols.get(word, -1) for word in words]
        if -1 in indices:
            if unknown is None:
                bad = words[indices.index(-1)]
                raise UserError(
                    f"{path}:{row + 1}: symbol {bad!r} is not in {dictionary_path}; "
                    "add it there, correct the line, or set task.unknown_symbols=unk"
                )
            indices = [unknown if index < 0 else index for index in indices]
        pieces.append(np.array(indices, dtype))
        offsets[position + 1] = offsets[position] + len(indices)
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
    return Labels(path, np.asarray(rows), tokens, offsets)


def lines_of(path: str, total: int, manifest_path: str) -> list[str]:
    """The lines of a label file, one for each of the manifest's ``total`` entries; empty ones at its end do not count.

    Raises:
        UserError: the file is missing, is no UTF-8 text, or has another number of lines.
    """
    lines = read_lines(path)
    while len(lines) > total and not lines[-1].strip():
        lines.pop()
    if len(lines) != total:
        raise UserError(
            f"{path} has {len(lines)} lines but {manifest_path} has {total} entries; "
            "each entry needs one line, in the same order: rebuild both together"
        )
    return lines


def read_lines(path: str) -> list[str]:
    """The lines of a label file. Raises ``UserError`` where it is missing or no UTF-8 text."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        raise UserError(
            f"{path}: this label file does not exist; task.labels names its suffix, and it stands beside the manifest"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: labels must be UTF-8 text ({error.reason} at byte {error.start})") from None
    if lines[-1] == "":
        lines.pop()
    return lines
