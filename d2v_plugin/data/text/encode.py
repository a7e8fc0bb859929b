"""Lines of text to fairseq's token numbers, in this process or in several.

Each line becomes its pieces and ``</s>``, as fairseq-preprocess writes it; an empty line is ``</s>`` alone, which is
how fairseq marks the end of a document.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from d2v_plugin.data.text.corpus import BadLines, Corpus, Piece, decode
from d2v_plugin.data.text.pieces import EOS, fairseq_ids, load_pieces
from d2v_plugin.errors import UserError

BATCH_BYTES = 1 << 20
# batches that wait for each process, so that none of them does
AHEAD = 3
PROGRESS_SECONDS = 2.0


@dataclass
class Batch:
    """Raw lines of one split, empty where a document ends, and where they come from."""

    split: str
    lines: list[bytes] = field(default_factory=list)
    origins: list[tuple[int, Path, int]] = field(default_factory=list)  # (position in lines, file, its line number)
    size: int = 0

    def add(self, piece: Piece, separate: bool) -> None:
        """Append a piece, behind the end of a document where ``separate``."""
        if separate:
            self.lines.append(b"")
        self.origins.append((len(self.lines), piece.path, piece.line))
        self.lines += piece.lines
        self.size += sum(map(len, piece.lines)) + len(piece.lines)

    def origin(self, position: int) -> tuple[Path, int]:
        """File and line number of a line."""
        start, path, line = next(origin for origin in reversed(self.origins) if origin[0] <= position)
        return path, line + position - start


@dataclass
class Encoded:
    """``tokens``: (T,) int64 end to end; ``sizes``: (lines,) int32; ``bad``: (position in the batch, what is wrong)."""

    tokens: np.ndarray
    sizes: np.ndarray
    bad: list[tuple[int, str]]


class PieceEncoder:
    """A sentencepiece model with fairseq's numbers for its pieces."""

    def __init__(self, model: bytes, symbols: list[str]):
        self.processor = load_pieces(model)
        self.ids = fairseq_ids(self.processor, symbols)

    def __call__(self, lines: list[bytes]) -> Encoded:
        """Encode raw lines; those that are no text are left out."""
        texts, bad = [], []
        for position, line in enumerate(lines):
            text, fault = decode(line)
            if fault:
                bad.append((position, fault))
            else:
                texts.append(text)
        return Encoded(*self.encode(texts), bad)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens end to end, sizes), each line closed by ``</s>``."""
        found = self.processor.encode(texts)
        sizes = np.fromiter(map(len, found), np.int64, len(found))
        tokens = np.fromiter(chain.from_iterable(found), np.int64, int(sizes.sum()))
        return np.insert(self.ids[tokens], np.cumsum(sizes), EOS), (sizes + 1).astype(np.int32)


_encoder: PieceEncoder | None = None


def _start_worker(model: bytes, symbols: list[str]) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers Ctrl-C
    _encoder = PieceEncoder(model, symbols)


def _work(lines: list[bytes]) -> Encoded:
    return _encoder(lines)


def encode_batches(
    batches: Iterable[Batch], model: bytes, symbols: list[str], workers: int
) -> Iterator[tuple[Batch, Encoded]]:
    """Encode batches in order; at most a few for each process are in memory.

    Args:
        workers: 1 encodes in this process.
    Raises:
        UserError: a process was killed.
    """
    if workers <= 1:
        encoder = PieceEncoder(model, symbols)
        for batch in batches:
            yield batch, encoder(batch.lines)
        return
    # A fresh interpreter for each: threads of this one (torch's, a test's) do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (model, symbols))
    waiting: deque = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(_work, batch.lines)))
            if len(waiting) > workers * AHEAD:
                batch, future = waiting.popleft()
                yield batch, future.result()
        while waiting:
            batch, future = waiting.popleft()
            yield batch, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "an encoding process ended before its time, most likely for lack of memory; use fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def batches(corpus: Corpus, split_of: Callable[[str], str], bad: BadLines) -> Iterator[Batch]:
    """Divide a corpus into batches of about 1 MiB, each of one split, documents of a split in their order."""
    building: dict[str, Batch] = {}
    split = "train"
    for piece in corpus.pieces(bad):
        if piece.starts:
            split = split_of(piece.key)
        separate = piece.starts and split in building
        batch = building.setdefault(split, Batch(split))
        batch.add(piece, separate)
        if batch.size >= BATCH_BYTES:
            yield batch
            building[split] = Batch(split)
    yield from (batch for batch in building.values() if batch.lines)


def told(items: Iterable, corpus: Corpus, verb: str) -> Iterator:
    """Pass items on and say on standard error how far the corpus is."""
    began = last = time.monotonic()
    for item in items:
        yield item
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS and corpus.bytes_read:
            last = now
            rate = corpus.bytes_read / (now - began)
            left = (corpus.total_bytes - corpus.bytes_read) / rate
            done, total = corpus.bytes_read / 1e6, corpus.total_bytes / 1e6
            print(f"{verb} {done:.0f}/{total:.0f} MB, {rate / 1e6:.1f} MB/s, {left:.0f} s left", file=sys.stderr)
