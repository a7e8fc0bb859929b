"""Write checkpoints so that a crash, a kill or a full disk leaves the previous one in place.

The new file is written beside the old one, flushed to the disk, checked, and only then renamed over it. Every step
that can run out of space comes before the rename.
"""

import errno
import itertools
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from d2v_plugin.errors import UserError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The kernel says "not here" with these when two files cannot share blocks; plain copying works then.
NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
COPY_CHUNK_BYTES = 1 << 26
STALE_AFTER_SECONDS = 24 * 3600
_serial = itertools.count()


def write_checkpoint(obj: Any, path: str | os.PathLike) -> None:
    """``torch.save`` that either completes or leaves what was at ``path``.

    The written file is checked by its size and its table of contents, which stands at the end and so is missing from
    a file cut short; errors of a network or quota file system surface in the flush. A full reload would double time
    and memory and would read the page cache rather than the disk.

    Args:
        obj: what to save.
        path: file to create or replace; its folder must exist.
    Raises:
        UserError: full disk, quota or file size limit, or no permission; the previous file is untouched.
    """
    path = Path(path)
    with _replacing(path) as file:
        guard = _RememberError(file)
        try:
            torch.save(obj, guard)
        except RuntimeError:
            # torch turns a failed write into "unexpected pos"; what the disk said is the cause.
            if guard.error is None:
                raise
            raise guard.error from None
        file.flush()
        _check_complete(file.name)


def copy_checkpoint(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copy a file so that ``target`` is at every moment the old one or the whole new one.

    The copy is independent of its source: a hard link would be free, but a tool that rewrites one name in place would
    then change both. File systems that can share blocks do so by themselves.

    Raises:
        UserError: full disk, or no permission; the previous ``target`` is untouched.
    """
    with open(source, "rb") as reader, _replacing(Path(target)) as writer:
        _copy_bytes(reader, writer)


class _RememberError:
    """A writable file that keeps the first ``OSError``, which torch's writer hides behind its own."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file in the folder of ``path`` which takes its place when the block ends without an error."""
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{next(_serial)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(_explain(error, path)) from error
    finally:
        # Gone after the rename, left over after any failure.
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _check_complete(name: str) -> None:
    try:
        with zipfile.ZipFile(name) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise OSError(errno.EIO, "the file does not read back") from error
    if not any(entry.endswith("data.pkl") for entry in names):
        raise OSError(errno.EIO, "the file does not read back")


def _copy_bytes(reader: BinaryIO, writer: BinaryIO) -> None:
    left = os.fstat(reader.fileno()).st_size
    while left > 0:
        try:
            copied = os.copy_file_range(reader.fileno(), writer.fileno(), min(left, COPY_CHUNK_BYTES))
        except OSError as error:
            if error.errno not in NO_KERNEL_COPY:
                raise
            break
        if copied == 0:
            break
        left -= copied
    else:
        return
    # Both descriptors stand where the kernel stopped.
    reader.seek(os.lseek(reader.fileno(), 0, os.SEEK_CUR))
    shutil.copyfileobj(reader, writer, COPY_CHUNK_BYTES)


def _explain(error: OSError, path: Path) -> str:
    if error.errno in FULL_DISK:
        try:
            free = f"{shutil.disk_usage(path.parent).free / 2**30:.1f} GiB free"
        except OSError:
            free = "free space unknown"
        return (
            f"cannot save {path}: {error.strerror} ({free}); earlier checkpoints are untouched; make room or set "
            "checkpoint.save_dir to another disk, then start the same command again to resume"
        )
    if error.errno == errno.ENOENT:
        return f"cannot save {path}: there is no folder {path.parent}; create it or change checkpoint.save_dir"
    return f"cannot save {path}: {error.strerror or error}; check the folder's permissions and its disk"


def _remove_stale(path: Path) -> None:
    """Remove what killed writers of ``path`` left, so that preempted jobs do not fill the disk."""
    host = socket.gethostname()
    for leftover in path.parent.glob(f".{_escape(path.name)}.*.tmp"):
        owner, _, process = leftover.name[len(path.name) + 2 : -len(".tmp")].rpartition("-")[0].rpartition("-")
        try:
            if owner == host and process.isdigit():
                stale = not _is_running(int(process))
            else:
                stale = time.time() - leftover.stat().st_mtime > STALE_AFTER_SECONDS
            if stale:
                leftover.unlink()
        except FileNotFoundError:
            continue


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _escape(name: str) -> str:
    """``name`` with the characters that ``glob`` treats specially made literal."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where folders can be flushed at all."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP}:
            raise
    finally:
        os.close(descriptor)
