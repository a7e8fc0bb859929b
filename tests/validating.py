"""What trainings and ``fairseq-validate`` say about a validation set."""

import contextlib
import json
import logging
from argparse import Namespace
from pathlib import Path
from unittest import mock


@contextlib.contextmanager
def logged(name: str):
    """A list that the JSON lines of one of fairseq's logs, "valid" or "train_inner", are added to."""
    lines = []
    handler = logging.Handler()
    # the progress bar's logger takes on the name while it speaks
    handler.emit = lambda record: record.name == name and lines.append(json.loads(record.getMessage()))
    logger = logging.getLogger("fairseq.logging.progress_bar")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def validated(path: Path, data: Path, task: str, subset: str, max_tokens: int) -> dict:
    """What ``fairseq-validate DATA --path PATH`` prints, with the rest of the task as in training."""
    from fairseq import options
    from fairseq_cli import validate

    words = [str(data), "--task", task, "--cpu", "--path", str(path), "--valid-subset", subset]
    words += ["--max-tokens", str(max_tokens), "--required-batch-size-multiple", "1", "--log-format", "simple"]
    args = options.parse_args_and_arch(options.get_validation_parser(), words)
    printed = {}
    bar = validate.progress_bar.SimpleProgressBar
    with mock.patch.object(bar, "print", lambda self, stats, **_: printed.update(stats)):
        validate.main(args, Namespace(data=str(data)))
    return printed
