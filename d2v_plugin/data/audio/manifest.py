"""fairseq's audio manifest: which recordings there are, and how long each one is.

The first line is the root folder; every other line is ``path<TAB>frames``. A path, relative to the root, names

* a plain file: ``train/0001.flac``;
* a member of an uncompressed zip: ``clips.zip:OFFSET:LENGTH``, in bytes, as fairseq spells it;
* a segment of a long recording: ``talk.flac:START:FRAMES``, in frames at the manifest's sample rate.

The suffix ``.zip`` tells the last two apart. Paths stay in the one byte string the file was read into, beside NumPy
arrays of positions: a million entries cost about 90 MB, and forked data workers share them, which Python lists,
whose reference counts are written on every access, would not allow.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from d2v_plugin.errors import UserError

SLICED = re.compile(r"(.+):(\d+):(\d+)")
NEWLINE, TAB = 10, 9
BLANK = (32, 13, 9)
MAX_DIGITS = 18


@dataclass(frozen=True)
class Entry:
    """One recording: where it lies and how long the manifest says it is.

    ``kind`` is "file", "zip" (``start`` and ``length`` in bytes) or "segment" (both in frames).
    """

    path: str
    frames: int
    kind: str = "file"
    start: int = 0
    length: int = 0

    def __str__(self) -> str:
        return self.path if self.kind == "file" else f"{self.path}:{self.start}:{self.length}"


@dataclass(frozen=True)
class Manifest:
    """The entries that were kept, with what was left out and why.

    ``rows`` holds the line of each entry, counted from 0 after the root, so that label files, which have one line for
    every line of the manifest, can follow the same selection. ``total`` counts all entries, kept or not.
    """

    path: str
    root: str
    total: int
    sizes: np.ndarray  # (N,) int64, frames
    rows: np.ndarray  # (N,) int64
    skipped: dict[str, int] = field(default_factory=dict)
    _bytes: bytes = b""
    _starts: np.ndarray | None = None
    _lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, index: int) -> str:
        """The path as the manifest spells it."""
        start = int(self._starts[index])
        return os.fsdecode(self._bytes[start : start + int(self._lengths[index])])

    def entry(self, index: int) -> Entry:
        """Where entry ``index`` lies, with the root joined."""
        return parse_entry(os.path.join(self.root, self.name(index)), int(self.sizes[index]))

    def select(self, keep: np.ndarray, reason: str | None = None) -> "Manifest":
        """Only the entries ``keep`` names: (N,) bool, or positions. ``reason`` counts the others as skipped."""
        kept = np.flatnonzero(keep) if keep.dtype == bool else keep
        skipped = dict(self.skipped)
        if reason is not None and len(kept) < len(self):
            skipped[reason] = skipped.get(reason, 0) + len(self) - len(kept)
        return replace(
            self,
            sizes=self.sizes[kept],
            rows=self.rows[kept],
            skipped=skipped,
            _starts=self._starts[kept],
            _lengths=self._lengths[kept],
        )


def parse_entry(path: str, frames: int) -> Entry:
    """Read the slice, if any, off the end of an entry's path."""
    match = SLICED.fullmatch(path)
    if match is None:
        return Entry(path, frames)
    kind = "zip" if match[1].endswith(".zip") else "segment"
    return Entry(match[1], frames, kind, int(match[2]), int(match[3]))


def load_manifest(path: str | os.PathLike, min_size: int | None = None, max_size: int | None = None) -> Manifest:
    """Read a manifest and leave out entries outside ``min_size`` to ``max_size`` frames (None: no bound).

    Raises:
        UserError: one line that names the file, where there is one the line, and what to change.
    """
    path = os.fspath(path)
    data = _read(path)
    root, body_start = _root(path, data)
    starts, ends, tabs = _split_lines(path, data, body_start)
    manifest = Manifest(
        path=path,
        root=root,
        total=len(starts),
        sizes=_parse_sizes(path, np.frombuffer(data, np.uint8), tabs + 1, ends),
        rows=np.arange(len(starts), dtype=np.int64),
        _bytes=data,
        _starts=starts,
        _lengths=(tabs - starts).astype(np.int32),
    )
    manifest = manifest.select(manifest.sizes > 0, "with 0 frames")
    if min_size:
        manifest = manifest.select(manifest.sizes >= min_size, f"shorter than {min_size} frames")
    if max_size is not None:
        manifest = manifest.select(manifest.sizes <= max_size, f"longer than {max_size} frames")
    if len(manifest) == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.skipped.items())
        raise UserError(
            f"{path}: none of its {manifest.total} entries is left ({reasons}); change the length limits, "
            "or the size column if it does not hold frames (samples per channel)"
        )
    return manifest


def write_manifest(path: str | os.PathLike, root: str | os.PathLike, entries: Iterable[tuple[str, int]]) -> int:
    """Write ``(name, frames)`` pairs below ``root``; returns how many there were."""
    lines = [f"{os.fspath(root)}\n"]
    for name, frames in entries:
        if "\t" in name or "\n" in name:
            raise UserError(f"{name!r}: a manifest cannot hold a path with a tab or a line break; rename the file")
        lines.append(f"{name}\t{frames}\n")
    Path(path).write_bytes(os.fsencode("".join(lines)))
    return len(lines) - 1


def _read(path: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        where = "" if os.path.isdir(folder) else f" (nor does its folder {folder})"
        raise UserError(
            f"{path}: this manifest does not exist{where}; "
            "set task.data to the folder that holds it, or write it with `d2v manifest build`"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from None
    if not data.strip():
        raise UserError(f"{path}: the manifest is empty; write it with `d2v manifest build`")
    return data


def _root(path: str, data: bytes) -> tuple[str, int]:
    """The root folder and where the entries begin. A relative root counts from here, or from the manifest's folder."""
    first, newline, _ = data.partition(b"\n")
    root = os.fsdecode(first.strip())
    if "\t" in root:
        raise UserError(f"{path}:1: the first line must be the root folder, got an entry; insert the folder above it")
    candidates = [root] if os.path.isabs(root) else [root, os.path.join(os.path.dirname(path), root)]
    for candidate in candidates:
        if root and os.path.isdir(candidate):
            return candidate, len(first) + len(newline)
    raise UserError(f"{path}:1: the root folder {root!r} does not exist; write the folder that holds the audio there")


def _split_lines(path: str, data: bytes, body_start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Byte positions of each entry's start, end and tab, each (N,) int64."""
    buffer = np.frombuffer(data, np.uint8)
    breaks = body_start + np.flatnonzero(buffer[body_start:] == NEWLINE)
    starts = np.concatenate(([body_start], breaks + 1)).astype(np.int64)
    ends = np.concatenate((breaks, [len(buffer)])).astype(np.int64)
    # trailing blanks, a carriage return among them, do not belong to the size
    while (trim := (ends > starts) & np.isin(buffer[np.maximum(ends - 1, 0)], BLANK)).any():
        ends = ends - trim
    filled = np.flatnonzero(ends > starts)
    if not len(filled):
        raise UserError(f"{path}: the manifest names its root but no files; write it with `d2v manifest build`")
    last = filled[-1] + 1
    starts, ends = starts[:last], ends[:last]

    all_tabs = np.flatnonzero(buffer == TAB)
    first_tab = np.searchsorted(all_tabs, starts)
    counts = np.searchsorted(all_tabs, ends) - first_tab
    wrong = np.flatnonzero(counts != 1)
    if len(wrong):
        row = wrong[0]
        line = os.fsdecode(data[starts[row] : ends[row]])[:80]
        raise UserError(
            f"{path}:{row + 2}: expected `path<TAB>frames`, got {line!r} with {counts[row]} tabs; correct this line"
        )
    return starts, ends, all_tabs[first_tab].astype(np.int64)


def _parse_sizes(path: str, buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Decimal numbers at ``buffer[starts:ends]`` as (N,) int64, a column of digits at a time."""
    widths = ends - starts
    sizes = np.zeros(len(starts), np.int64)
    wrong = (widths < 1) | (widths > MAX_DIGITS)
    for column in range(min(int(widths.max()), MAX_DIGITS)):
        inside = column < widths
        digits = buffer[np.where(inside, starts + column, starts - 1)].astype(np.int64) - ord("0")
        wrong |= inside & ((digits < 0) | (digits > 9))
        sizes = np.where(inside, sizes * 10 + digits, sizes)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        text = buffer[starts[row] : ends[row]].tobytes().decode("utf-8", "replace")[:40]
        raise UserError(
            f"{path}:{row + 2}: the size must be a whole number of frames (samples per channel), got {text!r}; "
            "correct this line"
        )
    return sizes
