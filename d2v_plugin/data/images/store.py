"""The bytes of an image: from its file or its place in a shard, or from a faster disk that keeps copies."""

import contextlib
import errno
import logging
import os
from collections import OrderedDict

import torch

from d2v_plugin.data.images.index import ImageEntry, ImageIndex
from d2v_plugin.data.images.io import ImageError
from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)

OPEN_SHARDS = 64  # per process; a node's limit is often 1024
SLURM = "slurm_tmpdir"


class ImageStore:
    """Reads the images of an index.

    Every process opens shards for itself. With ``local_cache_path`` an image is copied there when it is first read
    and read from there afterwards, under its whole path, as fairseq lays its cache out, so that one which is there is
    used. A copy gets its name when it is complete. When the disk is full, or cannot be written, one line says so and
    training goes on without further copies.

    Args:
        index: the images.
        local_cache_path: folder of the copies; ``slurm_tmpdir`` is the job's own, $SLURM_TMPDIR.
    """

    def __init__(self, index: ImageIndex, local_cache_path: str | None = None):
        self._shards: OrderedDict[str, int] = OrderedDict()
        self._process = os.getpid()
        self.index = index
        self.cache = _cache_root(local_cache_path)
        # Shared by the data workers, so that one of them speaks for all.
        self._full = torch.zeros(1, dtype=torch.uint8).share_memory_()

    def __getstate__(self):
        return {**self.__dict__, "_shards": OrderedDict(), "_process": None}

    def __del__(self):
        self._close_shards()

    def read(self, position: int, original: bool = False) -> bytes:
        """The bytes of one image; ``original`` passes over its copy, and replaces it.

        Raises:
            ImageError: missing, or the system does not give it out.
        """
        entry = self.index.entry(position)
        copy = None if self.cache is None else self._copy_of(entry)
        if copy is not None and not original:
            with contextlib.suppress(OSError), open(copy, "rb") as file:
                return file.read()
        data = self._original(entry)
        if copy is not None and not self._full[0]:
            self._keep(copy, data)
        return data

    def _original(self, entry: ImageEntry) -> bytes:
        try:
            if entry.offset is None:
                with open(entry.path, "rb") as file:
                    return file.read()
            return os.pread(self._shard(entry.path), entry.size, entry.offset)
        except FileNotFoundError:
            raise ImageError("missing", entry, "it was there when training began; put it back") from None
        except OSError as error:
            raise ImageError("unreadable", entry, f"{error.strerror}; check its rights and the disk") from None

    def _shard(self, path: str) -> int:
        """A descriptor of an open shard; the one unused for longest is closed when there are too many."""
        if self._process != os.getpid():
            # What was open when this process was forked belongs to its parent.
            self._shards, self._process = OrderedDict(), os.getpid()
        descriptor = self._shards.pop(path, None)
        if descriptor is None:
            if len(self._shards) >= OPEN_SHARDS:
                os.close(self._shards.popitem(last=False)[1])
            descriptor = os.open(path, os.O_RDONLY)
        self._shards[path] = descriptor
        return descriptor

    def _close_shards(self) -> None:
        if self._process == os.getpid():
            while self._shards:
                os.close(self._shards.popitem()[1])

    def _copy_of(self, entry: ImageEntry) -> str:
        path = os.path.abspath(entry.path).lstrip(os.sep)
        if entry.offset is None:
            return os.path.join(self.cache, path)
        # members of one name, and names that climb out of the folder, stay apart by where they begin
        return os.path.join(self.cache, path, f"{entry.offset}{os.path.splitext(entry.name)[1]}")

    def _keep(self, copy: str, data: bytes) -> None:
        partial = f"{copy}.{os.getpid()}.part"
        try:
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            with open(partial, "wb") as file:
                file.write(data)
            os.replace(partial, copy)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            if not self._full[0]:
                self._full[0] = 1
                what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"fails ({error.strerror})"
                logger.warning("task.local_cache_path=%s %s; no more images are copied there", self.cache, what)


def _cache_root(path: str | None) -> str | None:
    if not path:
        return None
    if path != SLURM:
        return path
    if not os.environ.get("SLURM_TMPDIR"):
        raise UserError(f"task.local_cache_path={SLURM} needs $SLURM_TMPDIR, which is not set; give a folder instead")
    return os.environ["SLURM_TMPDIR"]
