"""Checkpoints are written whole or not at all.

fairseq writes ``NAME.tmp`` and renames it, but tries a failed write three times into the same open file, so that a
disk that was full for a moment leaves the beginning of one attempt before the next; it does not flush before the
rename; and it copies ``checkpoint_best.pt`` and ``checkpoint_last.pt`` in place, so that a full disk destroys the
checkpoint that the copy replaces. A save that fails stops the run with one line: going on would train for hours
towards a checkpoint that cannot be kept.
"""

from typing import Any

from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from d2v_plugin.checkpoints import copy_checkpoint, write_checkpoint


def install() -> None:
    """Replace fairseq's saving and its copying of checkpoints."""
    original_save = checkpoint_utils.torch_persistent_save

    def save(obj: Any, filename: str, async_write: bool = False) -> None:
        """fairseq's signature; remote and asynchronous targets, which have no rename, stay with fairseq."""
        if async_write or not PathManager.supports_rename(filename):
            original_save(obj, filename, async_write=async_write)
        else:
            write_checkpoint(obj, filename)

    class CheckpointPathManager(PathManager):
        """fairseq's path manager as ``checkpoint_utils`` sees it, with a copy that replaces its target whole."""

        @staticmethod
        def copy(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
            if not (PathManager.supports_rename(src_path) and PathManager.supports_rename(dst_path)):
                return PathManager.copy(src_path, dst_path, overwrite=overwrite)
            copy_checkpoint(src_path, dst_path)
            return dst_path

    checkpoint_utils.torch_persistent_save = save
    checkpoint_utils.PathManager = CheckpointPathManager
