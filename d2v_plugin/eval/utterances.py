"""Recordings of a manifest in batches of similar length, with their reference texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from d2v_plugin.data.audio.io import AudioError, read_audio
from d2v_plugin.data.audio.manifest import Manifest, load_manifest
from d2v_plugin.data.bad_files import BadFiles
from d2v_plugin.errors import UserError
from d2v_plugin.eval.ctc import label_line_to_text
from d2v_plugin.eval.load import LoadedModel

READERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Batch:
    """Zero-padded recordings.

    ``indices``: (B,) positions in the manifest; ``source``: (B, N) fp32; ``lengths``: B sample counts;
    ``padding_mask``: (B, N) bool, True = padding, or None when nothing is padded.
    """

    indices: list[int]
    source: Tensor
    lengths: list[int]
    padding_mask: Tensor | None


def utterance_ids(manifest: Manifest) -> list[str]:
    """Paths as the manifest spells them without the suffix, or with it where that is needed to tell them apart."""
    names = [manifest.name(i) for i in range(len(manifest))]
    short = [os.path.splitext(name)[0] if manifest.entry(i).kind == "file" else name for i, name in enumerate(names)]
    ids = short if len(set(short)) == len(short) else names
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{manifest.path}: {twice!r} stands on several lines; keep one of them")
    return ids


def read_references(manifest: Manifest, labels: Path | None) -> list[str] | None:
    """Reference texts of the entries kept, from a letter file with one line for every line of the manifest.

    Args:
        labels: the file; None looks for ``<split>.ltr`` beside the manifest and is content without.
    Raises:
        UserError: a file that was named is missing, or its line count does not fit.
    """
    path = labels or Path(manifest.path).with_suffix(".ltr")
    if labels is None and not path.exists():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the labels {path}: {error}; give --labels a UTF-8 letter file") from error
    if len(lines) != manifest.total:
        raise UserError(
            f"{path} has {len(lines)} lines, {manifest.path} has {manifest.total} recordings; "
            "they must have one line each, in the same order"
        )
    return [label_line_to_text(lines[row]) for row in manifest.rows]


def length_batches(sizes: Sequence[int], max_size: int) -> list[list[int]]:
    """Indices grouped longest first so that rows times the longest row stay within ``max_size``.

    Longest first: a batch that does not fit in memory fails at once, not at the end. One recording longer than
    ``max_size`` is a batch by itself; 0 makes every recording one.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if batches and sizes[batches[-1][0]] * (len(batches[-1]) + 1) <= max_size:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def normalise(wave: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 over the recording, as fairseq's ``task.normalize`` (eps 1e-5)."""
    return ((wave - wave.mean()) / np.sqrt(wave.var() + 1e-5)).astype(np.float32)


def collate(waves: Sequence[np.ndarray], indices: list[int]) -> Batch:
    """Pad with zeros to the longest."""
    lengths = [len(wave) for wave in waves]
    source = torch.zeros(len(waves), max(lengths))
    for row, wave in zip(source, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    padded = torch.arange(source.size(1))[None] >= torch.tensor(lengths)[:, None]
    return Batch(indices, source, lengths, padded if bool(padded.any()) else None)


class Utterances:
    """A manifest's recordings, read as a model wants them.

    Args:
        manifest: ``.tsv`` file.
        sample_rate: Hz, others are resampled.
        normalize: scale each recording to mean 0 and variance 1.
        shortest: samples that one frame of the model needs; shorter recordings count as bad.
        max_bad: bad files that are skipped and counted before this is an error; -1 for any number.
    """

    def __init__(self, manifest: Path, sample_rate: int, normalize: bool, shortest: int = 1, max_bad: int = 10):
        self.manifest = load_manifest(manifest)
        self.ids = utterance_ids(self.manifest)
        self.sample_rate, self.normalize, self.shortest, self.max_bad = sample_rate, normalize, shortest, max_bad
        self.bad = BadFiles(len(self.manifest), -1, str(manifest))

    def __len__(self) -> int:
        return len(self.manifest)

    def read(self, index: int) -> np.ndarray:
        """(N,) fp32 waveform before normalisation.

        Raises:
            AudioError: the recording cannot be used.
        """
        return read_audio(self.manifest.entry(index), self.sample_rate, shortest=self.shortest)

    def losses(self) -> list[str]:
        """A line about entries left out by their size and one about unusable recordings, where there are any."""
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.manifest.skipped.items())
        missing = self.manifest.total - len(self)
        lines = [f"{self.manifest.path}: {missing} of {self.manifest.total} entries left out ({left_out})"]
        return (lines if left_out else []) + [line for line in (self.bad.summary(),) if line]

    def _read_batch(self, indices: list[int], pool: ThreadPoolExecutor) -> list:
        def attempt(index: int):
            try:
                wave = self.read(index)
            except AudioError as error:
                return index, error
            return index, normalise(wave) if self.normalize else wave

        return [pool.submit(attempt, index) for index in indices]

    def _finish(self, futures: list) -> Batch | None:
        good = []
        for index, result in (future.result() for future in futures):
            if not isinstance(result, AudioError):
                good.append((index, result))
                continue
            self.bad.record(index, result)
            if 0 <= self.max_bad < self.bad.count():
                raise UserError(
                    f"{self.bad.count()} unusable recordings, --max-bad allows {self.max_bad}; the last was {result}; "
                    "repair or drop them (`d2v manifest check --decode` lists them), or raise --max-bad"
                )
        return collate([wave for _, wave in good], [index for index, _ in good]) if good else None

    def batches(self, max_seconds: float) -> Iterator[Batch]:
        """Batches of at most ``max_seconds`` of audio with its padding, the next one read while this one is used.

        Raises:
            UserError: more bad files than allowed, or no good one.
        """
        plan = length_batches(self.manifest.sizes.tolist(), int(max_seconds * self.sample_rate))
        with ThreadPoolExecutor(READERS) as pool:
            ahead = self._read_batch(plan[0], pool)
            for following in [*plan[1:], None]:
                futures, ahead = ahead, self._read_batch(following, pool) if following else None
                batch = self._finish(futures)
                if batch is not None:
                    yield batch
        if self.bad.count() == len(self):
            raise UserError(
                f"{self.manifest.path}: none of its {len(self)} recordings could be used: "
                f"{self.bad.summary()}; run `d2v manifest check --decode`"
            )


def utterances_for(loaded: LoadedModel, manifest: Path, max_bad: int) -> Utterances:
    """A manifest's recordings as this model was trained to hear them."""
    return Utterances(manifest, loaded.sample_rate, loaded.normalize, loaded.receptive_field, max_bad)
