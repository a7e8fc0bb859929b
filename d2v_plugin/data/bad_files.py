"""Count files that could not be read, across data workers, and stop when there are too many.

Every entry owns one byte of shared memory: 0, or the kind of fault. A worker that fails to read entry i writes byte i;
no two writers share a byte, so nothing is lost between processes, a file that fails in every epoch counts once, and the
main process reads the totals whenever it likes.
"""

import logging
from collections.abc import Callable, Sequence

import torch

from d2v_plugin.data.audio.io import KINDS
from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)

AUDIO_ADVICE = "`d2v manifest check --decode` lists them"


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
        kinds: the faults that are told apart, at most 255; an error's ``kind`` is one of them.
        advice: how the user finds the files, for messages.
    """

    def __init__(self, size: int, limit: int, source: str, kinds: Sequence[str] = KINDS, advice: str = AUDIO_ADVICE):
        self.limit = limit
        self.source = source
        self.kinds_known = tuple(kinds)
        self.advice = advice
        self.status = torch.zeros(size, dtype=torch.uint8).share_memory_()  # (N,) 0 or 1 + position in kinds_known

    def record(self, index: int, error: UserError) -> None:
        """Note that entry ``index`` failed with an error that has a ``kind``; the first time it is also logged.

        Raises:
            TooManyBadFiles: more than ``limit`` files have failed.
        """
        if self.status[index] == 0:
            self.status[index] = 1 + self.kinds_known.index(error.kind)
            logger.warning("skipped %s", error)
        count = self.count()
        if 0 <= self.limit < count:
            raise TooManyBadFiles(
                f"{self.source}: {count} unusable files, max_bad_files allows {self.limit}; the last one was {error}; "
                f"repair or drop them ({self.advice}), or raise task.max_bad_files"
            )

    def count(self) -> int:
        """How many different files have failed so far."""
        return int(torch.count_nonzero(self.status))

    def kinds(self) -> dict[str, int]:
        """How many files failed for each reason."""
        known = self.kinds_known
        counts = torch.bincount(self.status.long(), minlength=1 + len(known)).tolist()
        return {kind: count for kind, count in zip(known, counts[1:], strict=True) if count}

    def summary(self) -> str | None:
        """One line, or None when every file read so far was good."""
        kinds = self.kinds()
        if not kinds:
            return None
        reasons = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"{self.source}: {sum(kinds.values())} of {len(self.status)} files were unusable and skipped ({reasons})"


def readable(samples: list[dict], dataset, allowed: Callable[[int], bool] | None = None) -> list[dict]:
    """The samples that could be read; when none could, the nearest entry of ``dataset`` that can.

    An empty batch would make fairseq repeat the epoch's first batch, and fail when that one is empty too. Every process
    of a distributed run has to take the step, so one neighbour stands in for the whole batch.

    Args:
        samples: each with ``id``, its position in ``dataset``, and ``source``, None where it could not be read.
        dataset: the same kind of samples by position; ``dataset.bad_files`` counts those that fail.
        allowed: says which neighbours may stand in.
    """
    good = [sample for sample in samples if sample["source"] is not None]
    if good or not samples:
        return good
    tried = {sample["id"] for sample in samples}
    middle = samples[0]["id"]
    for distance in range(1, len(dataset)):
        for index in (middle + distance, middle - distance):
            if not 0 <= index < len(dataset) or index in tried or (allowed is not None and not allowed(index)):
                continue
            sample = dataset[index]
            if sample["source"] is not None:
                return [sample]
    advice = getattr(getattr(dataset, "bad_files", None), "advice", AUDIO_ADVICE)
    raise UserError(f"none of the {len(dataset)} files could be read; {advice}")
