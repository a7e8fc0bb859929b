"""What frozen features know: two linear probes in closed form, for every layer.

Sound: ridge regression from one frame of features to MFCCs 2-13 of the 25 ms around the same instant, scored by R2 on
the frames of other recordings. The first coefficient is left out: loudness is easy and says little.

Letters: a CTC model aligns the transcripts, so that each letter has its frame (``align.py``). Ridge regression from
that frame of features to which letter it is, one output a letter, scored by how many letters of other recordings have
the largest output. It is one frame, not a window: what is measured is what a frame holds, and the fit stays as small as
the features are wide. The same alignment serves every layer and the untrained network, so its mistakes lower all
scores alike. Neighbouring letters are not independent, so the standard error is that of a bootstrap over recordings.

Nearest neighbours, the same questions with nothing fitted: the frames of other recordings that are most alike
(``knn.py``) vote for the letter, and the mean of their MFCCs, weighted by the same similarity, is the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from d2v_plugin.errors import UserError
from d2v_plugin.eval.align import AlignedLetters
from d2v_plugin.eval.features import iterate_features
from d2v_plugin.eval.knn import K, knn_mean, knn_predict
from d2v_plugin.eval.load import LoadedModel
from d2v_plugin.eval.mfcc import mfcc
from d2v_plugin.eval.ridge import fit_ridge, r2_score
from d2v_plugin.eval.utterances import Utterances

# frames or letters beyond this change the fit in the third digit and cost time and memory
MAX_FRAMES = 30_000
BOOTSTRAP_ROUNDS = 200
# every pair of them is compared, so there are fewer for neighbours, evenly from all recordings
KNN_KNOWN, KNN_ASKED = 10_000, 3_000


@dataclass(frozen=True)
class LayerScore:
    """``mfcc``: R2; ``letters``: fraction that is right, with its standard error, None without an alignment;
    ``mfcc_knn``, ``letters_knn``: the same from nearest neighbours."""

    layer: int
    mfcc: float
    letters: float | None
    letters_error: float | None
    mfcc_knn: float | None = None
    letters_knn: float | None = None


@dataclass(frozen=True)
class Rows:
    """What a probe is fitted on or scored on.

    ``frames``: {layer: (N, C)}; ``groups``: (N,) recording of each frame; ``targets``: (N, 12) MFCCs or (N,) letters.
    """

    frames: dict[int, np.ndarray]
    groups: np.ndarray
    targets: np.ndarray

    @property
    def recordings(self) -> int:
        return len(np.unique(self.groups))


@dataclass(frozen=True)
class Collected:
    """Both kinds of rows of one set of recordings; ``letters`` is None without an alignment."""

    sound: Rows
    letters: Rows | None


class _Growing:
    """Rows while they are collected."""

    def __init__(self, layers: Sequence[int]):
        self.frames: dict[int, list] = {layer: [] for layer in layers}
        self.groups: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []

    def add(self, index: int, outputs: Mapping, kept: np.ndarray, targets: np.ndarray) -> None:
        for layer, output in outputs.items():
            self.frames[layer].append(output.numpy()[kept])
        self.groups.append(np.full(len(kept), index))
        self.targets.append(targets)

    def rows(self) -> Rows:
        frames = {layer: np.concatenate(parts) for layer, parts in self.frames.items()}
        return Rows(frames, np.concatenate(self.groups), np.concatenate(self.targets))


def collect(
    loaded: LoadedModel,
    utterances: Utterances,
    layers: Sequence[int],
    max_seconds: float,
    aligned: Mapping[int, AlignedLetters] | None = None,
    watch=lambda items: items,
) -> Collected:
    """Run the model once and keep what both probes need.

    Args:
        aligned: letters by position in the manifest; each takes the frame whose centre is nearest.
        watch: wraps the iterator, to show progress.
    """
    step = max(1, math.ceil(int(utterances.manifest.sizes.sum()) / loaded.stride / MAX_FRAMES))
    letter_step = max(1, math.ceil(sum(len(a.letters) for a in (aligned or {}).values()) / MAX_FRAMES))
    sound, letters = _Growing(layers), _Growing(layers)
    first_centre = (loaded.receptive_field - 1) / 2
    for index, outputs in watch(iterate_features(loaded, utterances, layers, max_seconds)):
        count = len(next(iter(outputs.values())))
        kept = np.arange(index % step, count, step)
        if len(kept):
            centres = kept * loaded.stride + first_centre
            sound.add(index, outputs, kept, mfcc(utterances.read(index), loaded.sample_rate, centres))
        if aligned and index in aligned:
            chosen = slice(index % letter_step, None, letter_step)
            samples = aligned[index].seconds[chosen] * loaded.sample_rate
            nearest = np.rint((samples - first_centre) / loaded.stride).astype(np.int64).clip(0, count - 1)
            letters.add(index, outputs, nearest, np.array(list(aligned[index].letters[chosen]), dtype="U1"))
    return Collected(sound.rows(), letters.rows() if letters.groups else None)


def _check(train: Rows | None, test: Rows | None, what: str, advice: str) -> None:
    counts = [0 if rows is None else rows.recordings for rows in (train, test)]
    if counts[0] < 10 or counts[1] < 2:
        raise UserError(
            f"{what} needs at least 10 training and 2 test recordings, got {counts[0]} and {counts[1]}; {advice}"
        )


def letter_chance(train: Rows, test: Rows) -> float:
    """Fraction that is right when the most frequent letter of ``train`` is always the answer."""
    names, counts = np.unique(train.targets, return_counts=True)
    return float((test.targets == names[counts.argmax()]).mean())


def _letters_score(train: Rows, test: Rows, layer: int) -> tuple[float, float]:
    names = np.unique(train.targets)
    fit = fit_ridge(train.frames[layer], train.targets[:, None] == names, train.groups)
    right = names[fit.predict(test.frames[layer]).argmax(1)] == test.targets
    _, member = np.unique(test.groups, return_inverse=True)
    totals, hits = np.bincount(member), np.bincount(member, right)
    draws = np.random.default_rng(0).integers(0, len(totals), (BOOTSTRAP_ROUNDS, len(totals)))
    again = hits[draws].sum(1) / totals[draws].sum(1)
    return float(right.mean()), float(again.std())


def _thinned(rows: Rows, layer: int, most: int) -> tuple[torch.Tensor, np.ndarray]:
    """(N, C) features and the targets of at most ``most`` rows, evenly from all."""
    kept = np.unique(np.linspace(0, len(rows.groups) - 1, most).astype(np.int64))
    return torch.from_numpy(rows.frames[layer][kept]), rows.targets[kept]


def _mfcc_neighbours(train: Rows, test: Rows, layer: int) -> float:
    """R2 of the neighbours' mean MFCCs."""
    (known, values), (asked, truth) = _thinned(train, layer, KNN_KNOWN), _thinned(test, layer, KNN_ASKED)
    found = knn_mean(known, torch.from_numpy(values), asked, k=min(K, len(known)))
    return r2_score(truth, found.numpy())


def _letters_neighbours(train: Rows, test: Rows, layer: int) -> float:
    """Fraction of the letters that the neighbours' vote tells."""
    (known, letters), (asked, truth) = _thinned(train, layer, KNN_KNOWN), _thinned(test, layer, KNN_ASKED)
    names, labels = np.unique(letters, return_inverse=True)
    found = knn_predict(known, torch.from_numpy(labels), asked, k=min(K, len(known)))
    return float((names[found.numpy()] == truth).mean())


def score_layers(train: Collected, test: Collected, letters: bool) -> list[LayerScore]:
    """Fit on ``train``, score on ``test``, layer by layer.

    Args:
        letters: score them, too; both sides were collected with an alignment.
    Raises:
        UserError: too few recordings to fit.
    """
    _check(train.sound, test.sound, "probing", "use longer manifests")
    if letters:
        _check(
            train.letters,
            test.letters,
            "probing letters",
            "transcripts must fit into their recordings, or leave --align out",
        )
    scores = []
    for layer in train.sound.frames:
        fit = fit_ridge(train.sound.frames[layer], train.sound.targets, train.sound.groups)
        r2 = r2_score(test.sound.targets, fit.predict(test.sound.frames[layer]))
        found = _letters_score(train.letters, test.letters, layer) if letters else (None, None)
        near = _letters_neighbours(train.letters, test.letters, layer) if letters else None
        mfcc_near = _mfcc_neighbours(train.sound, test.sound, layer)
        scores.append(LayerScore(layer, r2, *found, mfcc_knn=mfcc_near, letters_knn=near))
    return scores


def format_table(trained: Sequence[LayerScore], untrained: Sequence[LayerScore] | None) -> str:
    """One line a layer; the untrained network stands beside the trained one."""

    def cells(score: LayerScore) -> list[str]:
        sound = [f"{score.mfcc:.3f}", "-" if score.mfcc_knn is None else f"{score.mfcc_knn:.3f}"]
        if score.letters is None:
            return sound
        near = "-" if score.letters_knn is None else f"{100 * score.letters_knn:.1f} %"
        return [*sound, f"{100 * score.letters:.1f} ± {100 * score.letters_error:.1f} %", near]

    header = ["MFCC R2", "by neighbours", "letters right", "by neighbours"][: len(cells(trained[0]))]
    sides = [trained, untrained] if untrained else [trained]
    rows = [["layer", *header, *(f"{name}, untrained" for name in header if untrained)]]
    for scores in zip(*sides, strict=True):
        rows.append([str(scores[0].layer), *(cell for score in scores for cell in cells(score))])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
