"""Find recordings, divide them by a fixed rule, and write manifests and labels."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from d2v_plugin.data.audio.manifest import write_manifest
from d2v_plugin.data.audio.transcripts import write_dictionary, write_labels
from d2v_plugin.errors import UserError

EXTENSIONS = ("wav", "flac", "ogg", "mp3", "aiff", "aif", "opus")
THREADS = 8
PROGRESS_SECONDS = 2.0


@dataclass(frozen=True)
class Recording:
    """A line of a manifest. ``key`` decides its split: recordings with the same key stay together."""

    name: str
    frames: int
    key: str
    text: str | None = None


def find_files(folder: str | os.PathLike, extensions: Iterable[str] = EXTENSIONS) -> list[str]:
    """Paths below ``folder`` with one of the suffixes, relative to it, sorted; links to folders are followed.

    Raises:
        UserError: no such folder, or nothing in it.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: this folder does not exist; give the one that holds the recordings")
    suffixes = tuple("." + extension.lower().lstrip(".") for extension in extensions)
    found = [
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(suffixes)
    ]
    if not found:
        raise UserError(f"{folder}: holds no file that ends with {', '.join(suffixes)}; name the suffix with --ext")
    return sorted(found)


def threaded(work: Callable, items: Sequence, verb: str) -> Iterator:
    """``work(item)`` for each item, in order, in threads, with progress on standard error."""
    began = told = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        for done, result in enumerate(pool.map(work, items), 1):
            yield result
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS:
                told = now
                rate = done / (now - began)
                left = (len(items) - done) / rate
                print(f"{verb} {done}/{len(items)}, {rate:.0f} a second, {left:.0f} s left", file=sys.stderr)


def share(key: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the key and the seed only."""
    salted = key if seed == 0 else f"{seed}:{key}"
    # the last four decimal digits of the MD5: a rule that can be checked by hand
    return int(hashlib.md5(salted.encode(), usedforsecurity=False).hexdigest(), 16) % 10000 / 10000


def divide(recordings: Sequence[Recording], shares: dict[str, float], seed: int = 0) -> dict[str, list[Recording]]:
    """Recordings by split; those that share a key land in the same one.

    A key whose ``share`` falls below the first split's portion goes there, below the first two together to the second,
    and so on; the rest is ``train``. A split that got nothing takes the training key with the smallest share, while
    there is more than one.
    """
    keys = sorted({recording.key for recording in recordings}, key=lambda key: (share(key, seed), key))
    place = {}
    for key in keys:
        bound = 0.0
        for split, portion in shares.items():
            bound += portion
            if share(key, seed) < bound:
                place[key] = split
                break
        else:
            place[key] = "train"
    for split, portion in shares.items():
        train = [key for key in keys if place[key] == "train"]
        if portion > 0 and split not in place.values() and len(train) > 1:
            place[train[0]] = split
    result = {split: [] for split in ("train", *shares)}
    for recording in recordings:
        result[place[recording.key]].append(recording)
    return result


def segments(name: str, frames: int, longest: int) -> list[tuple[str, int]]:
    """Manifest entries of a recording: itself, or equal segments of at most ``longest`` frames."""
    pieces = -(-frames // longest)
    if pieces <= 1:
        return [(name, frames)]
    edges = [frames * piece // pieces for piece in range(pieces + 1)]
    return [(f"{name}:{a}:{b - a}", b - a) for a, b in zip(edges, edges[1:], strict=False)]


def write_splits(dest: str | os.PathLike, root: str | os.PathLike, splits: dict[str, list[Recording]]) -> None:
    """``<split>.tsv`` and, where every recording has a text, ``.ltr``, ``.wrd`` and ``dict.ltr.txt``."""
    Path(dest).mkdir(parents=True, exist_ok=True)
    labelled = all(recording.text is not None for recordings in splits.values() for recording in recordings)
    for split, recordings in splits.items():
        if not recordings:
            continue
        write_manifest(Path(dest, f"{split}.tsv"), root, ((r.name, r.frames) for r in recordings))
        if labelled:
            write_labels(dest, split, (r.text for r in recordings))
    if labelled:
        write_dictionary(dest, (r.text for recordings in splits.values() for r in recordings))
