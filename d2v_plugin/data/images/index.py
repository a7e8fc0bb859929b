"""Which images there are, and where: files below folders, or members of tar shards, in a few NumPy arrays.

Names stay in one byte string beside arrays of positions: ten million images take some 800 MB less than as Python
strings, and forked data workers share them, which Python lists, whose reference counts are written on every access,
would not allow.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class ImageEntry:
    """One image: a file, or ``size`` bytes at ``offset`` of a shard."""

    container: str
    name: str
    offset: int | None = None
    size: int | None = None

    @property
    def path(self) -> str:
        """The file to open."""
        return os.path.join(self.container, self.name) if self.offset is None else self.container

    def __str__(self) -> str:
        return self.path if self.offset is None else f"{self.container}:{self.name}"


@dataclass(frozen=True)
class ImageIndex:
    """The images of one split.

    ``containers`` are the folders that names are relative to, or the shards. ``labels`` is None where nothing says what
    class an image belongs to; ``classes`` are the names of the labels where they have any.
    """

    source: str  # for messages
    containers: tuple[str, ...]
    container_of: np.ndarray  # (N,) int32
    labels: np.ndarray | None = None  # (N,) int32
    classes: tuple[str, ...] = ()
    offsets: np.ndarray | None = None  # (N,) int64, shards only
    sizes: np.ndarray | None = None  # (N,) int64, shards only
    _bytes: bytes = b""
    _ends: np.ndarray | None = None  # (M,) int64, where each name of ``_bytes`` ends
    _rows: np.ndarray | None = None  # (N,) which of these names; None: all, in order

    def __len__(self) -> int:
        return len(self.container_of)

    def name(self, index: int) -> str:
        """As the folder or the shard spells it."""
        row = int(index if self._rows is None else self._rows[index])
        start = int(self._ends[row - 1]) if row else 0
        return os.fsdecode(self._bytes[start : int(self._ends[row])])

    def entry(self, index: int) -> ImageEntry:
        container = self.containers[self.container_of[index]]
        if self.offsets is None:
            return ImageEntry(container, self.name(index))
        return ImageEntry(container, self.name(index), int(self.offsets[index]), int(self.sizes[index]))

    def select(self, kept: np.ndarray) -> "ImageIndex":
        """Only the images at the positions ``kept``."""

        def pick(values):
            return None if values is None else values[kept]

        return replace(
            self,
            container_of=self.container_of[kept],
            labels=pick(self.labels),
            offsets=pick(self.offsets),
            sizes=pick(self.sizes),
            _rows=kept.copy() if self._rows is None else self._rows[kept],
        )


def pack_names(names: Sequence[str]) -> tuple[bytes, np.ndarray]:
    """One byte string, and where in it each name ends."""
    encoded = [os.fsencode(name) for name in names]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return b"".join(encoded), ends


def build_index(
    source: str,
    containers: Sequence[str],
    container_of: Sequence[int],
    names: Sequence[str],
    labels: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> ImageIndex:
    """An index of files from plain lists; N names and as many containers and labels."""
    blob, ends = pack_names(names)
    return ImageIndex(
        source,
        tuple(containers),
        np.asarray(container_of, np.int32),
        None if labels is None else np.asarray(labels, np.int32),
        tuple(classes),
        _bytes=blob,
        _ends=ends,
    )


def concatenate(indexes: Sequence[ImageIndex]) -> ImageIndex:
    """One after the other; all of files or all of shards.

    Labels stay only where every index has them and they mean the same.
    """
    first = indexes[0]
    if len(indexes) == 1:
        return first
    labelled = all(index.labels is not None and index.classes == first.classes for index in indexes)
    blob_starts = np.cumsum([0] + [len(index._bytes) for index in indexes[:-1]])
    container_starts = np.cumsum([0] + [len(index.containers) for index in indexes[:-1]])
    in_shards = first.offsets is not None

    def join(values):
        return np.concatenate(list(values))

    return ImageIndex(
        ", ".join(index.source for index in indexes),
        tuple(container for index in indexes for container in index.containers),
        join(index.container_of + np.int32(n) for index, n in zip(indexes, container_starts, strict=True)),
        join(index.labels for index in indexes) if labelled else None,
        first.classes if labelled else (),
        join(index.offsets for index in indexes) if in_shards else None,
        join(index.sizes for index in indexes) if in_shards else None,
        b"".join(index._bytes for index in indexes),
        join(index._ends + n for index, n in zip(indexes, blob_starts, strict=True)),
    )
