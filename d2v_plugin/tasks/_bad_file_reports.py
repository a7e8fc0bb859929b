"""Say how many files were unusable: when there are more, in every line of metrics, and at the end."""

import atexit
import logging
import weakref
from collections.abc import Iterable

from fairseq.logging import metrics

logger = logging.getLogger(__name__)


class BadFileReports:
    """Put before a fairseq task class; ``counted[split]`` is a dataset with ``bad_files``."""

    def start_reports(self) -> None:
        """Call at the end of ``__init__``."""
        self.counted: dict[str, object] = {}
        self._reported: dict[str, int] = {}
        # Only the main process runs its exit handlers; forked data workers leave without.
        atexit.register(_report_at_exit, weakref.ref(self))

    def report_bad_files(self, only_news: bool = True) -> None:
        """Log one line for each split with unusable files, by default when there are more than at the last report."""
        for split, dataset in self.counted.items():
            count = dataset.bad_files.count()
            if count > (self._reported.get(split, 0) if only_news else 0):
                self._reported[split] = count
                logger.warning(dataset.bad_files.summary())

    def begin_epoch(self, epoch, model):
        super().begin_epoch(epoch, model)
        self.report_bad_files()

    def begin_valid_epoch(self, epoch, model):
        super().begin_valid_epoch(epoch, model)
        self.report_bad_files()

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        log_bad_files(self.counted.values())


def log_bad_files(datasets: Iterable) -> None:
    """The metric ``bad_files``, where there are any: unusable files of all ``datasets`` in this process."""
    bad = sum(dataset.bad_files.count() for dataset in datasets)
    if bad:
        metrics.log_scalar("bad_files", bad, weight=0, priority=900)


def _report_at_exit(reference: weakref.ref) -> None:
    task = reference()
    if task is not None:
        task.report_bad_files(only_news=False)
