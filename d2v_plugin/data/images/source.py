"""From ``task.data`` and a split's name to the index of its images, or to one line that says what is missing."""

import glob
import logging
import os
import time

from d2v_plugin.data.images.folder import EXTENSIONS, all_below, class_folders, is_image
from d2v_plugin.data.images.index import ImageIndex, concatenate
from d2v_plugin.data.images.tar import tar_index
from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)

KINDS = ("imagefolder", "path", "tar")


def find_images(roots: list[str], split: str, kind: str = "imagefolder") -> ImageIndex:
    """The images of one split.

    Args:
        roots: folders, searched one after the other.
        split: ``train``, ``valid`` or whatever the folders hold.
        kind: ``imagefolder``, ``<root>/<split>/<class>/*.jpg``, or images straight in ``<root>/<split>``, or else
            shards as with ``tar``: ``<root>/<split>/*.tar`` or ``<root>/<split>-*.tar``. ``path``: every image below
            the roots, whatever the split, as fairseq reads it.
    Raises:
        UserError: an unknown kind, or no such folder, split or image.
    """
    if kind not in KINDS:
        raise UserError(f"task.dataset_type must be one of {', '.join(KINDS)}, got {kind!r}")
    for root in roots:
        if not os.path.isdir(root):
            raise UserError(f"{root}: this folder does not exist; give the one that holds the splits, task.data=FOLDER")
    began = time.monotonic()
    if kind == "path":
        index = all_below(roots)
        if index is None:
            raise UserError(f"{', '.join(roots)}: no image in it or below ({', '.join(EXTENSIONS)}); check task.data")
    else:
        index = concatenate(_one_kind([_one_root(root, split, kind) for root in roots]))
    classes = f" in {len(index.classes)} classes" if index.classes else ""
    seconds = time.monotonic() - began
    logger.info("%s: %d images%s, found in %.1f s", index.source, len(index), classes, seconds)
    return index


def find_unlabelled(roots: list[str], split: str) -> ImageIndex:
    """The images of one split whose folders mean nothing, as data2vec 1.0 reads them.

    Args:
        roots: folders, searched one after the other.
        split: the images below ``<root>/<split>`` in folders of any depth, or else its shards. Where no root has that
            split, every image below the roots.
    Raises:
        UserError: no such folder or no image.
    """
    inside = [os.path.join(root, split) for root in roots]
    if all(os.path.isdir(folder) for folder in inside) and any(_holds_image(folder) for folder in inside):
        return find_images(inside, split, "path")
    if any(split in splits_in(root) for root in roots if os.path.isdir(root)):
        return find_images(roots, split)
    index = find_images(roots, split, "path")
    logger.warning("%s has no %r; every image below it is used", index.source, split)
    return index


def splits_in(root: str) -> list[str]:
    """Names that could be given as a split of ``root``: its folders, and the first parts of its shards' names."""
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    shards = glob.glob(os.path.join(glob.escape(root), "*-*.tar"))
    return sorted(set(names) | {os.path.basename(shard).rpartition("-")[0] for shard in shards})


def _holds_image(folder: str) -> bool:
    """Stops at the first, where listing everything takes minutes."""
    return any(is_image(name) for _, _, names in os.walk(folder, followlinks=True) for name in names)


def _one_root(root: str, split: str, kind: str) -> ImageIndex:
    folder = os.path.join(root, split)
    inside = sorted(glob.glob(os.path.join(glob.escape(folder), "*.tar")))
    beside = sorted(glob.glob(os.path.join(glob.escape(root), f"{glob.escape(split)}-*.tar")))
    if not os.path.isdir(folder) and not beside:
        there = splits_in(root)
        raise UserError(
            f"{folder}: this split does not exist; {root} has {', '.join(there) if there else 'none'}. Give its parent "
            "folder as task.data and one of its splits as dataset.train_subset or dataset.valid_subset"
        )
    index = None
    if kind == "imagefolder" and os.path.isdir(folder):
        index = class_folders(folder)
    if index is None and inside:
        index = tar_index(inside, folder, ".d2v_index.npz")
    if index is None and beside:
        index = tar_index(beside, os.path.join(root, f"{split}-*.tar"), f".d2v_index_{split.replace(os.sep, '_')}.npz")
    if index is None:
        raise UserError(f"{folder}: {_nothing(folder, kind, inside or beside)}")
    return index


def _nothing(folder: str, kind: str, shards: list[str]) -> str:
    packed = glob.glob(os.path.join(glob.escape(folder), "*.tar.*")) + glob.glob(f"{glob.escape(folder)}-*.tar.*")
    if packed:
        return f"{os.path.basename(packed[0])} is compressed; unpack it and pack it again as a plain tar"
    if shards:
        return f"its {len(shards)} shards hold no image ({', '.join(EXTENSIONS)})"
    if kind == "tar":
        return "no *.tar in it; for images in folders set task.dataset_type=imagefolder"
    return f"no image ({', '.join(EXTENSIONS)}) and no *.tar in it; put the images there, or give another folder"


def _one_kind(indexes: list[ImageIndex]) -> list[ImageIndex]:
    if len({index.offsets is None for index in indexes}) > 1:
        raise UserError(
            f"{', '.join(index.source for index in indexes)}: some are folders of images and some are shards; "
            "give folders of one kind as task.multi_data"
        )
    return indexes
