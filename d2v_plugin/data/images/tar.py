"""Images in tar shards: an index of names, offsets and sizes, made once and kept.

A shard is an uncompressed tar, as WebDataset writes it. Every member whose name ends like an image's is a sample; a
member of the same name that ends in ``.cls`` and holds a number is its label. The index of all shards of a split is one
``.npz`` beside them, or in the user's cache folder where that cannot be written. A shard that is new, or whose size or
time of change differs from what the index says, is read again. The file is replaced whole, so that several processes
may write it at once.
"""

import contextlib
import hashlib
import logging
import os
import tarfile
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from d2v_plugin.data.images.folder import is_image
from d2v_plugin.data.images.index import ImageIndex, pack_names
from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)

THREADS = 4
PROGRESS_SECONDS = 10.0
FORMAT = 1
NO_LABEL = -1
ARRAYS = ("shards", "stamps", "counts", "names", "offsets", "sizes", "labels")


@dataclass
class Shard:
    """What the headers of one tar say."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def tar_index(shards: Sequence[str], source: str, cache: str) -> ImageIndex | None:
    """The images of all shards, in the order given, or None when they hold none.

    Args:
        source: for messages.
        cache: name of the index; it is kept in the shards' folder, or else in the user's cache folder.
    Raises:
        UserError: a shard that is compressed or no tar at all.
    """
    stamps = np.array([_stamp(shard) for shard in shards], dtype=np.int64).reshape(-1, 2)  # (S, 2) size, time
    places = _places(os.path.dirname(os.path.abspath(shards[0])), cache)
    names = [os.path.basename(shard) for shard in shards]
    known = _load(places, names, stamps)
    missing = [number for number in range(len(shards)) if number not in known]
    if missing:
        known.update(_read_all(shards, missing))
    kept = [known[number] for number in range(len(shards))]
    if missing:
        _save(places, names, stamps, kept)
    return _assemble(source, shards, kept)


def read_shard(path: str) -> Shard:
    """Read a shard's headers; its images are skipped over, not read.

    Raises:
        UserError: compressed, or no tar.
    """
    shard, classes = Shard(), {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _members(tar, path):
                stem, dot, ending = member.name.rpartition(".")
                if is_image(member.name):
                    shard.names.append(member.name)
                    shard.offsets.append(member.offset_data)
                    shard.sizes.append(member.size)
                elif dot and ending == "cls":
                    text = tar.extractfile(member).read(32).strip()
                    classes[stem] = int(text) if text.isdigit() and len(text) < 10 else NO_LABEL
    except tarfile.ReadError as error:
        raise UserError(
            f"{path}: cannot be read as an uncompressed tar ({error}); unpack a compressed one and pack it again "
            "without compression, since images are read from their places in it, or remove it"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from None
    shard.labels = [classes.get(name.rpartition(".")[0], NO_LABEL) for name in shard.names]
    return shard


def _members(tar: tarfile.TarFile, path: str):
    """Plain files of a tar, up to where it was cut off, if it was."""
    try:
        while (member := tar.next()) is not None:
            tar.members.clear()  # tarfile would keep every header
            if member.isfile():
                yield member
    except tarfile.ReadError as error:
        logger.warning("%s: cut off (%s); the images before that are used", path, error)
        return
    # tarfile takes a broken header for the end, which is a block of zeros
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        logger.warning("%s: broken at byte %d; the images before that are used", path, tar.offset)


def _read_all(shards: Sequence[str], numbers: Sequence[int]) -> dict[int, Shard]:
    found, pictures = {}, 0
    began = told = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for number, shard in zip(numbers, pool.map(lambda n: read_shard(shards[n]), numbers), strict=True):
            found[number] = shard
            pictures += len(shard.names)
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS:
                told = now
                left = (now - began) / len(found) * (len(numbers) - len(found))
                logger.info("indexed %d of %d shards, %.0f s left", len(found), len(numbers), left)
    logger.info("indexed %d shards: %d images in %.1f s", len(numbers), pictures, time.monotonic() - began)
    return found


def _assemble(source: str, shards: Sequence[str], read: Sequence[Shard]) -> ImageIndex | None:
    counts = [len(shard.names) for shard in read]
    if not sum(counts):
        return None
    blob, ends = pack_names([name for shard in read for name in shard.names])
    labels = np.concatenate([np.asarray(shard.labels, np.int32) for shard in read])
    return ImageIndex(
        source,
        tuple(shards),
        np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        None if (labels == NO_LABEL).any() else labels,
        offsets=np.concatenate([np.asarray(shard.offsets, np.int64) for shard in read]),
        sizes=np.concatenate([np.asarray(shard.sizes, np.int64) for shard in read]),
        _bytes=blob,
        _ends=ends,
    )


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _places(folder: str, cache: str) -> list[Path]:
    """Where the index may be, best first."""
    below = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(os.fsencode(os.path.join(folder, cache))).hexdigest()[:16]
    return [Path(folder, cache), Path(below, "d2v", f"{key}-{cache.lstrip('.')}")]


def _load(places: Sequence[Path], names: Sequence[str], stamps: np.ndarray) -> dict[int, Shard]:
    """Shards the index knows and that have not changed, by their number; none when there is no index."""
    for place in places:
        try:
            with np.load(place, allow_pickle=False) as file:
                if int(file["format"]) != FORMAT:
                    continue
                kept = {name: file[name] for name in ARRAYS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
        old = {name: number for number, name in enumerate(_split(kept["shards"].tobytes()))}
        edges = np.concatenate(([0], np.cumsum(kept["counts"])))
        all_names = _split(kept["names"].tobytes())
        known = {}
        for number, name in enumerate(names):
            was = old.get(name)
            if was is None or not np.array_equal(kept["stamps"][was], stamps[number]):
                continue
            part = slice(edges[was], edges[was + 1])
            known[number] = Shard(all_names[part], *(kept[key][part] for key in ("offsets", "sizes", "labels")))
        return known
    return {}


def _save(places: Sequence[Path], names: Sequence[str], stamps: np.ndarray, shards: Sequence[Shard]) -> None:
    def join(key, dtype):
        return np.concatenate([np.asarray(getattr(shard, key), dtype) for shard in shards])

    arrays = {
        "format": np.array(FORMAT),
        "shards": _join(names),
        "stamps": stamps,
        "counts": np.array([len(shard.names) for shard in shards], np.int64),
        "names": _join([name for shard in shards for name in shard.names]),
        "offsets": join("offsets", np.int64),
        "sizes": join("sizes", np.int64),
        "labels": join("labels", np.int32),
    }
    for place in places:
        partial = place.with_name(f"{place.name}.{os.getpid()}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                np.savez(file, **arrays)
            os.replace(partial, place)
            return
        except OSError as error:
            reason = error.strerror
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    logger.warning("%s: the index cannot be kept (%s), so the next start reads all shards again", places[0], reason)


def _join(names: Sequence[str]) -> np.ndarray:
    """Names as bytes; none of them holds the byte 0, which separates them."""
    return np.frombuffer(b"".join(os.fsencode(name) + b"\0" for name in names), np.uint8)


def _split(data: bytes) -> list[str]:
    return [os.fsdecode(name) for name in data.split(b"\0")[:-1]]
