"""One line on the terminal that says how far a command is; nothing when nobody is looking."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

INTERVAL_SECONDS = 0.2
# into a file or a pipe a line is for good, so it comes rarely
INTERVAL_SECONDS_FILE = 15.0


def progress(items: Iterable, total: int, what: str) -> Iterator:
    """Pass ``items`` on and write ``what 12/70, 3 s`` to standard error."""
    terminal = sys.stderr.isatty()
    interval = INTERVAL_SECONDS if terminal else INTERVAL_SECONDS_FILE
    start = shown = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= interval or (terminal and count == total):
            end = "\r" if terminal and count < total else "\n"
            print(f"{what} {count}/{total}, {now - start:.0f} s", end=end, file=sys.stderr, flush=True)
            shown = now
