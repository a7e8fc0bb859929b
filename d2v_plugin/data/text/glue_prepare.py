"""GLUE's files to what ``sentence_prediction`` reads, with the pieces of a pre-trained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from d2v_plugin.data.text.build import whole_folder
from d2v_plugin.data.text.glue import GlueTask
from d2v_plugin.data.text.glue_files import Skipped, find_folder, read_task
from d2v_plugin.data.text.labelled import SplitCount, TextEncoder, write_split
from d2v_plugin.data.text.pieces import DICTIONARY_NAME
from d2v_plugin.errors import UserError


def prepare_task(
    source: Path,
    dest: Path,
    task: GlueTask,
    encoder: TextEncoder,
    *,
    max_positions: int = 512,
    max_bad_lines: int = 100,
    tell: Callable[[str], None] = print,
) -> dict[str, SplitCount]:
    """Write one task to ``dest``, which appears when all of it is written.

    Args:
        source: GLUE's folder, or the task's.
        max_positions: longest sequence of the model, in tokens.
        max_bad_lines: lines that are skipped; -1 is any number.
    Raises:
        UserError: one line on what is wrong and what to change.
    """
    skipped, counts = Skipped(max_bad_lines), {}
    samples = read_task(find_folder(source, task), task, skipped)
    with whole_folder(dest) as folder:
        for split, rows in samples.items():
            counts[split] = write_split(folder, split, rows, encoder, task.classes, max_positions)
    for split, count in counts.items():
        tell(f"{dest / 'input0' / split}.bin: {count}")
    if skipped.kinds:
        tell(f"{task.folder}: left out {skipped.kinds.total()} lines: {skipped}")
    return counts


def prepare_tasks(source: Path, dest: Path, tasks: Sequence[GlueTask], encoder: TextEncoder, **options) -> list[str]:
    """Write each task to ``dest/<name>``, unless it is there; the names of those that were written."""
    tell, written = options.get("tell", print), []
    for task in tasks:
        folder = dest / task.name
        if (folder / "label").is_dir():
            _check_same_dictionary(folder / "input0" / DICTIONARY_NAME, encoder)
            tell(f"{folder}: there already, left as it is")
            continue
        prepare_task(source, folder, task, encoder, **options)
        written.append(task.name)
    return written


def _check_same_dictionary(path: Path, encoder: TextEncoder) -> None:
    if not path.is_file() or path.read_bytes() != encoder.dictionary.read_bytes():
        raise UserError(
            f"{path.parents[1]} was written with another dictionary than {encoder.dictionary}; remove it, or choose "
            "another --dest"
        )
