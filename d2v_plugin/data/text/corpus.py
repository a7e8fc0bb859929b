"""Raw text as it lies on disk: plain or gzip files, documents divided by blank lines, read as a stream.

A document ends at a blank line, at the end of its file and, where asked for, after a number of lines. It is handed on
in pieces of about 64 KiB of whole lines, so memory does not grow with it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from d2v_plugin.data.audio.building import find_files, share
from d2v_plugin.errors import UserError

EXTENSIONS = ("txt", "text", "gz")
GZIP_MAGIC = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PIECE_BYTES = 1 << 16
# a file without newlines is not text, and must not be read into memory whole
LONGEST_LINE = 1 << 24
SHOWN = 5

NOT_UTF8, NUL, TOO_LONG, DAMAGED = "not UTF-8", "with NUL bytes", "longer than 16 MiB", "cut off by a damaged archive"


@dataclass
class Piece:
    """Consecutive lines of one document, without their ends.

    ``starts`` marks the first piece of a document; ``line`` is the number of its first line in ``path``, from 1.
    """

    path: Path
    line: int
    starts: bool
    lines: list[bytes] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What stands for the document in the division: its first 64 KiB, so that copies stay together."""
        return hashlib.md5(b"\n".join(self.lines), usedforsecurity=False).hexdigest()


class BadLines:
    """Counts lines that cannot be used, tells the first few, and stops when there are more than ``limit``.

    Args:
        limit: 0 stops at the first, -1 never.
        shown: how many are told.
    """

    def __init__(self, limit: int, shown: int = SHOWN):
        self.limit, self.shown = limit, shown
        self.kinds: Counter[str] = Counter()

    def record(self, kind: str, path: Path, line: int) -> None:
        """Raises ``UserError`` beyond the limit."""
        self.kinds[kind] += 1
        count = self.kinds.total()
        if 0 <= self.limit < count:
            raise UserError(
                f"{path}:{line}: {kind}, and {count} lines so far cannot be used where --max-bad-lines allows "
                f"{self.limit}; convert the file (`iconv -f latin1 -t utf-8`), leave it out, or raise --max-bad-lines"
            )
        if count <= self.shown:
            print(f"left out {path}:{line}: {kind}", file=sys.stderr)

    def summary(self) -> str:
        """One line, empty when every line was good."""
        if not self.kinds:
            return ""
        reasons = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        return f"left out {self.kinds.total()} lines: {reasons}"


def decode(line: bytes) -> tuple[str, str | None]:
    """The text of a line and what is wrong with it, None when nothing is."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return "", NOT_UTF8
    # UTF-16 of Latin letters is UTF-8, with a NUL beside each
    return ("", NUL) if "\0" in text else (text, None)


def find_sources(paths: Sequence[str | os.PathLike], extensions: Iterable[str] = EXTENSIONS) -> list[Path]:
    """The files named, and those in the folders named that end in one of the suffixes; each once, in order.

    Raises:
        UserError: a path does not exist, or a folder holds no such file.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found |= dict.fromkeys(path / name for name in find_files(path, extensions))
        elif path.exists():
            found[path] = None
        else:
            raise UserError(f"{path}: this file or folder does not exist; give the text to read")
    return list(found)


class Corpus:
    """Text files, read from the first line to the last as often as ``pieces`` is called.

    Args:
        sources: plain or gzip files.
        document_lines: a document ends after this many lines at the latest; None: only where the text says so.
    """

    def __init__(self, sources: Sequence[Path], document_lines: int | None = None):
        self.sources = list(sources)
        self.document_lines = document_lines
        self.total_bytes = sum(path.stat().st_size for path in self.sources)
        self.bytes_read = 0

    def pieces(self, bad: BadLines) -> Iterator[Piece]:
        """Every document with at least one line, in pieces of whole lines; ``bad`` takes what cannot be read."""
        self.bytes_read = 0
        for path in self.sources:
            before = self.bytes_read
            with open(path, "rb") as file:
                zipped = file.read(2) == GZIP_MAGIC
                file.seek(0)
                stream = gzip.GzipFile(fileobj=file) if zipped else file
                for piece in self._documents(path, _lines(path, stream, bad)):
                    self.bytes_read = before + file.tell()
                    yield piece
            self.bytes_read = before + path.stat().st_size

    def _documents(self, path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[Piece]:
        piece, size, inside = Piece(path, 1, True), 0, 0  # inside: lines of this document so far
        for number, line in lines:
            ends = inside == self.document_lines
            gap = number != piece.line + len(piece.lines)
            if not line or ends or gap or size >= PIECE_BYTES:
                if piece.lines:
                    yield piece
                if not line or ends:
                    inside = 0
                piece, size = Piece(path, number, inside == 0), 0
            if line:
                if not piece.lines:
                    piece.line = number
                piece.lines.append(line)
                size += len(line)
                inside += 1
        if piece.lines:
            yield piece


def _lines(path: Path, stream: BinaryIO, bad: BadLines) -> Iterator[tuple[int, bytes]]:
    """(number, line without blanks around it); a blank line is empty."""
    number = 0
    try:
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if len(line) >= LONGEST_LINE and not line.endswith(b"\n"):
                while rest := stream.readline(LONGEST_LINE):
                    if rest.endswith(b"\n"):
                        break
                bad.record(TOO_LONG, path, number)
                continue
            yield number, line.strip()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        bad.record(DAMAGED, path, number + 1)


class Division:
    """Which split a document goes to: a fixed rule over its first 64 KiB and the seed.

    Args:
        shares: portion of each split beside ``train``; see :func:`d2v_plugin.data.audio.building.divide`, whose rule
            this is for a stream of documents.
    """

    def __init__(self, shares: dict[str, float], seed: int = 0):
        self.shares = {split: portion for split, portion in shares.items() if portion > 0}
        self.seed = seed
        self.documents: Counter[str] = Counter()
        self._smallest: list[tuple[float, str]] = []  # of train, one more than there are other splits
        self._moved: dict[str, str] = {}

    def split(self, key: str) -> str:
        """Where the document goes."""
        if key in self._moved:
            return self._moved[key]
        number, bound = share(key, self.seed), 0.0
        for split, portion in self.shares.items():
            bound += portion
            if number < bound:
                return split
        return "train"

    def survey(self, key: str) -> str:
        """``split``, and count the document."""
        split = self.split(key)
        self.documents[split] += 1
        if split == "train":
            entry = share(key, self.seed), key
            if entry not in self._smallest:
                self._smallest = sorted([*self._smallest, entry])[: len(self.shares) + 1]
        return split

    def settle(self) -> None:
        """After the survey: a split that got nothing takes the training document with the smallest share.

        Raises:
            UserError: no documents, or too few to divide.
        """
        for split in self.shares:
            if self.documents[split]:
                continue
            if len(self._smallest) < 2:
                total = self.documents.total()
                raise UserError(
                    f"the text holds {total} different document{'s' if total != 1 else ''}, too few for a {split} "
                    "split; put a blank line between documents, add --document-lines 1000, name other text with "
                    "--valid, or pass --valid-share 0"
                )
            self._moved[self._smallest.pop(0)[1]] = split
