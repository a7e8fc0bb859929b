"""fairseq's memory-mapped token files, written as a stream: ``NAME.bin`` and ``NAME.idx``.

``.bin`` holds the tokens of all sequences end to end. ``.idx`` holds the magic ``MMIDIDX\\0\\0``, the version 1
(uint64), the code of the token type (uint8), the number of sequences (uint64), their lengths (int32 each) and where
each begins in ``.bin`` (int64 bytes each); little-endian. Lengths wait in a file beside them, so memory does not grow.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2v_plugin.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16, 9: np.uint32, 10: np.uint64}
HEADER = struct.Struct("<9sQBQ")
CHUNK = 1 << 20


def token_type(symbols: int) -> type:
    """The type fairseq takes for a dictionary of that many symbols."""
    return np.uint16 if symbols < 65500 else np.uint32


class TokenWriter:
    """Writes one split; nothing has its final name before ``close``.

    Args:
        prefix: path without ``.bin``.
        symbols: size of the dictionary, which decides the type.
    """

    def __init__(self, prefix: str | os.PathLike, symbols: int):
        self.prefix = Path(prefix)
        self.dtype = np.dtype(token_type(symbols))
        self.sequences = self.tokens = 0
        self._files = [self._part(kind) for kind in (".bin", ".idx", ".sizes")]
        self._bin, self._idx, self._sizes = (open(file, "wb+") for file in self._files)

    def _part(self, kind: str) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}{kind}.part")

    def add(self, tokens: np.ndarray, sizes: np.ndarray) -> None:
        """Append sequences.

        Args:
            tokens: all of them end to end.
            sizes: how many tokens each has.
        """
        self._bin.write(tokens.astype(self.dtype, copy=False).tobytes())
        self._sizes.write(sizes.astype("<i4", copy=False).tobytes())
        self.sequences += len(sizes)
        self.tokens += len(tokens)

    def close(self) -> None:
        """Write the index and give both files their names, the one that makes the split count last."""
        code = next(code for code, kind in CODES.items() if kind == self.dtype.type)
        self._idx.write(HEADER.pack(MAGIC, 1, code, self.sequences))
        self._sizes.seek(0)
        shutil.copyfileobj(self._sizes, self._idx, CHUNK)
        self._sizes.seek(0)
        begin = 0
        while chunk := self._sizes.read(CHUNK):
            ends = begin + np.cumsum(np.frombuffer(chunk, "<i4").astype(np.int64) * self.dtype.itemsize)
            self._idx.write(np.concatenate(([begin], ends[:-1])).astype("<i8").tobytes())
            begin = int(ends[-1])
        for file in (self._bin, self._idx, self._sizes):
            file.close()
        for kind in (".bin", ".idx"):
            os.replace(self._part(kind), f"{self.prefix}{kind}")
        self._part(".sizes").unlink()

    def discard(self) -> None:
        """Close and remove what has no name yet."""
        for file in (self._bin, self._idx, self._sizes):
            with contextlib.suppress(OSError):  # a full disk, once more, for what was still buffered
                file.close()
        for file in self._files:
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class TokenFile:
    """One split, mapped into memory.

    ``sizes``: (N,) int32; ``tokens``: all tokens end to end, of the file's own type.
    """

    sizes: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def sequences(self, start: int = 0):
        """Sequences in order, as int64 arrays."""
        begin = int(self.sizes[:start].sum(dtype=np.int64))
        for size in self.sizes[start:].tolist():
            yield self.tokens[begin : begin + size].astype(np.int64)
            begin += size


def exists(prefix: str | os.PathLike) -> bool:
    """Both files are there."""
    return all(os.path.isfile(f"{prefix}{kind}") for kind in (".bin", ".idx"))


def open_tokens(prefix: str | os.PathLike) -> TokenFile:
    """Map a split.

    Raises:
        UserError: missing, of another kind, cut off, or index and data do not belong together.
    """
    again = "write it again with `d2v text build` or `d2v text encode`"
    if not exists(prefix):
        raise UserError(f"{prefix}: needs {prefix}.bin and {prefix}.idx; {again}")
    index = Path(f"{prefix}.idx")
    with open(index, "rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise UserError(f"{index}: not an index of fairseq's mmap kind; {again}")
    _, version, code, count = HEADER.unpack(head)
    if version != 1 or code not in CODES:
        raise UserError(f"{index}: version {version} with token type {code}, which is not known; {again}")
    dtype = np.dtype(CODES[code])
    if index.stat().st_size != HEADER.size + 12 * count:
        raise UserError(f"{index}: its size does not fit the {count} sequences it announces; {again}")
    sizes = np.memmap(index, "<i4", "r", HEADER.size, (count,)) if count else np.zeros(0, np.int32)
    tokens, data = int(sizes.sum(dtype=np.int64)), Path(f"{prefix}.bin")
    if data.stat().st_size != tokens * dtype.itemsize:
        raise UserError(
            f"{data}: has {data.stat().st_size} bytes where {index.name} announces {tokens * dtype.itemsize}; {again}"
        )
    return TokenFile(sizes, np.memmap(data, dtype, "r") if tokens else np.zeros(0, dtype))
