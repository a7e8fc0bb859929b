"""Count files that could not be read, across data workers, and stop when there are too many.

Every entry owns one byte of shared memory: 0, or the kind of fault. A worker that fails to read entry i writes byte i;
no two writers share a byte, so nothing is lost between processes, a file that fails in every epoch counts once, and the
main process reads the totals whenever it likes.
"""

import logging

import torch

from d2v_plugin.data.audio_io import KINDS, AudioError
from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)


class TooManyBadFiles(UserError):
    """More files failed than the user allowed.

    torch raises a worker's error again with the worker's whole traceback as its message; only the line the user
    needs, which stands last, is kept.
    """

    def __init__(self, message: str):
        last = message.strip().splitlines()[-1]
        super().__init__(last.split("TooManyBadFiles: ", 1)[-1])


class BadFiles:
    """The faults of one dataset's files.

    Args:
        size: number of entries.
        limit: how many may fail before training stops; 0 stops at the first, -1 never.
        source: what the entries come from, for messages.
    """

    def __init__(self, size: int, limit: int, source: str):
        self.limit = limit
        self.source = source
        self.status = torch.zeros(size, dtype=torch.uint8).share_memory_()  # (N,) 0 or 1 + position in KINDS

    def record(self, index: int, error: AudioError) -> None:
        """Note that entry ``index`` failed; the first time it is also logged.

        Raises:
            TooManyBadFiles: more than ``limit`` files have failed.
        """
        if self.status[index] == 0:
            self.status[index] = 1 + KINDS.index(error.kind)
            logger.warning("skipped %s", error)
        count = self.count()
        if 0 <= self.limit < count:
            raise TooManyBadFiles(
                f"{self.source}: {count} unusable files, max_bad_files allows {self.limit}; the last one was {error}; "
                "repair or drop them (`d2v manifest check --decode` lists them), or raise task.max_bad_files"
            )

    def count(self) -> int:
        """How many different files have failed so far."""
        return int(torch.count_nonzero(self.status))

    def kinds(self) -> dict[str, int]:
        """How many files failed for each reason."""
        counts = torch.bincount(self.status.long(), minlength=1 + len(KINDS)).tolist()
        return {kind: count for kind, count in zip(KINDS, counts[1:], strict=True) if count}

    def summary(self) -> str | None:
        """One line, or None when every file read so far was good."""
        kinds = self.kinds()
        if not kinds:
            return None
        reasons = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"{self.source}: {sum(kinds.values())} of {len(self.status)} files were unusable and skipped ({reasons})"
