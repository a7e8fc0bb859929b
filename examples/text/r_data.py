"""Reads the texts of an R package's lazily loaded data, so that R itself is not needed.

``NAME.rdx`` is a zlib-compressed serialisation of a list: ``variables`` names each object and says where it lies in
``NAME.rdb``, as an offset and a length in bytes. There it is four bytes of length, big-endian, and its serialisation,
compressed by zlib. A serialisation is R's XDR format, of which this reads lists, numbers and text.
Source: R Internals, sections 1.8 (serialization formats) and 1.9 (LazyLoad databases).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from d2v_plugin.errors import UserError

# codes of R's types, the low byte of each item's flags
SYMBOL, PAIRS, CHARACTERS, LOGICAL, INTEGER, REAL, STRINGS, LIST = 1, 2, 9, 10, 13, 14, 16, 19
EMPTY, REFERENCE = 254, 255
HAS_ATTRIBUTES, HAS_TAG = 1 << 9, 1 << 10
GZIP_OR_ZLIB = 47  # zlib's code for finding out


class Serialised:
    """Reads one object from its bytes."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0
        self.symbols: list[str] = []

    def read(self):
        """The object: text as str or None (NA), vectors as lists, lists with names as dicts."""
        if self._take(2) != b"X\n":
            raise ValueError("not R's XDR format")
        version, _, _ = self._integers(3)
        if version == 3:
            self._take(self._integers(1)[0])  # the encoding it was written in; each text says its own
        return self._item()

    def _take(self, count: int) -> bytes:
        self.place += count
        if count < 0 or self.place > len(self.content):
            raise ValueError("it was cut off")
        return self.content[self.place - count : self.place]

    def _integers(self, count: int) -> list[int]:
        return list(struct.unpack(f">{count}i", self._take(4 * count)))

    def _item(self):
        flags = self._integers(1)[0]
        kind = flags & 0xFF
        if kind == EMPTY:
            return None
        if kind == REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == SYMBOL:
            self.symbols.append(self._item())
            return self.symbols[-1]
        if kind == PAIRS:
            return self._pairs(flags)
        size = self._integers(1)[0]
        if kind == CHARACTERS:
            return None if size < 0 else self._take(size).decode("utf-8", errors="replace")
        if kind in (LOGICAL, INTEGER):
            value = self._integers(size)
        elif kind == REAL:
            value = list(struct.unpack(f">{size}d", self._take(8 * size)))
        elif kind in (STRINGS, LIST):
            value = [self._item() for _ in range(size)]
        else:
            raise ValueError(f"an object of type {kind}")
        attributes = (self._item() or {}) if flags & HAS_ATTRIBUTES else {}
        return dict(zip(attributes["names"], value, strict=True)) if "names" in attributes else value

    def _pairs(self, flags: int) -> dict:
        """A list of tagged values, one cell after the other."""
        found = {}
        while flags & 0xFF == PAIRS:
            if flags & HAS_ATTRIBUTES:
                self._item()
            tag = self._item() if flags & HAS_TAG else None
            found[tag] = self._item()
            flags = self._integers(1)[0]
        return found


def read_data(base: Path) -> dict[str, list]:
    """Every object of ``base.rdx`` and ``base.rdb`` by name; a vector of text is a list of str.

    Raises:
        UserError: a file is missing, or not of this form.
    """
    try:
        index = Serialised(zlib.decompress(base.with_suffix(".rdx").read_bytes(), GZIP_OR_ZLIB)).read()
        data = base.with_suffix(".rdb").read_bytes()
        found = {}
        for name, (offset, size) in index["variables"].items():
            found[name] = Serialised(zlib.decompress(data[offset + 4 : offset + size])).read()
        return found
    except (OSError, ValueError, KeyError, IndexError, TypeError, zlib.error, struct.error) as error:
        raise UserError(
            f"{base}.rdx and {base}.rdb cannot be read ({error}); delete the folder they were unpacked to and run "
            "this again"
        ) from error
