"""What frozen features know: two linear probes in closed form, for every layer.

Sound: ridge regression from one frame of features to MFCCs 2-13 of the 25 ms around the same instant, scored by R2 on
the frames of other recordings. The first coefficient is left out: loudness is easy and says little.

Letters: ridge regression from the features summed over a recording to how often each letter stands in its transcript.
Since sum_t w.x_t = w.(sum_t x_t), this fits one linear detector of each letter per frame whose outputs add up to the
count, which needs neither an alignment nor training by gradient descent. (A linear CTC layer would need many passes,
leaves its all-blank plateau late or never on minutes of labels, and depends on its schedule; whether a letter occurs
at all says little in long sentences.) A longer recording has more of everything, so the score is R2 over a predictor
that knows the duration only: 0 means the features add nothing, 1 means every count is right. Its standard error is
that of a bootstrap over the test recordings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from d2v_plugin.errors import UserError
from d2v_plugin.eval.features import iterate_features
from d2v_plugin.eval.load import LoadedModel
from d2v_plugin.eval.mfcc import mfcc
from d2v_plugin.eval.ridge import fit_ridge, r2_score
from d2v_plugin.eval.utterances import Utterances

# frames beyond this change the fit in the third digit and cost time and memory
MAX_FRAMES = 30_000
# a letter in fewer test recordings than this is scored by chance
MIN_OCCURRENCES = 5
BOOTSTRAP_ROUNDS = 200


@dataclass(frozen=True)
class LayerScore:
    """``mfcc``: R2; ``letters``: R2 beyond duration with its standard error, None without labels."""

    layer: int
    mfcc: float
    letters: float | None
    letters_error: float | None


@dataclass
class Collected:
    """Features of one set of recordings, in the order of its manifest.

    ``frames``: {layer: (N, C)}; ``groups``: (N,) recording of each frame; ``targets``: (N, 12) MFCCs;
    ``sums``: {layer: (U, C)}; ``durations``: (U,) frames; ``indices``: (U,) positions in the manifest.
    """

    frames: dict[int, np.ndarray]
    groups: np.ndarray
    targets: np.ndarray
    sums: dict[int, np.ndarray]
    durations: np.ndarray
    indices: np.ndarray


def collect(
    loaded: LoadedModel, utterances: Utterances, layers: Sequence[int], max_seconds: float, watch=lambda items: items
) -> Collected:
    """Run the model once and keep what both probes need.

    Args:
        watch: wraps the iterator, to show progress.
    """
    step = max(1, math.ceil(int(utterances.manifest.sizes.sum()) / loaded.stride / MAX_FRAMES))
    frames: dict[int, list] = {layer: [] for layer in layers}
    sums: dict[int, list] = {layer: [] for layer in layers}
    groups, targets, durations, indices = [], [], [], []
    for index, outputs in watch(iterate_features(loaded, utterances, layers, max_seconds)):
        count = len(next(iter(outputs.values())))
        kept = np.arange(index % step, count, step)
        if len(kept):
            centres = kept * loaded.stride + (loaded.receptive_field - 1) / 2
            targets.append(mfcc(utterances.read(index), loaded.sample_rate, centres))
            groups.append(np.full(len(kept), index))
        for layer, output in outputs.items():
            values = output.numpy()
            sums[layer].append(values.sum(0, dtype=np.float64))
            frames[layer].append(values[kept])
        durations.append(count)
        indices.append(index)
    return Collected(
        {layer: np.concatenate(parts) for layer, parts in frames.items()},
        np.concatenate(groups),
        np.concatenate(targets),
        {layer: np.stack(parts) for layer, parts in sums.items()},
        np.array(durations, dtype=np.float64),
        np.array(indices),
    )


def letter_counts(texts: Iterable[str], letters: Sequence[str]) -> np.ndarray:
    """(U, letters) float64."""
    return np.array([[text.count(letter) for letter in letters] for text in texts], dtype=np.float64)


def scored_letters(train: Sequence[str], test: Sequence[str]) -> list[str]:
    """Letters that stand in enough recordings on both sides."""
    letters = sorted({letter for text in train for letter in text} - {" "})
    return [
        letter
        for letter in letters
        if min(sum(letter in text for text in side) for side in (train, test)) >= MIN_OCCURRENCES
    ]


def _letters_score(
    train: Collected, test: Collected, layer: int, counts: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float]:
    groups = np.arange(len(train.durations))
    expected = [
        fit_ridge(train.durations[:, None], counts[0], groups).predict(side.durations[:, None])
        for side in (train, test)
    ]
    # centred frames: what is left of a sum when the duration is known
    mean = train.sums[layer].sum(0) / train.durations.sum()
    x = [side.sums[layer] - side.durations[:, None] * mean for side in (train, test)]
    by_duration = expected[1]
    predicted = by_duration + fit_ridge(x[0], counts[0] - expected[0], groups).predict(x[1])
    generator = np.random.default_rng(0)
    draws = [generator.integers(0, len(predicted), len(predicted)) for _ in range(BOOTSTRAP_ROUNDS)]
    again = [r2_score(counts[1][draw], predicted[draw], by_duration[draw]) for draw in draws]
    return r2_score(counts[1], predicted, by_duration), float(np.std(again))


def score_layers(train: Collected, test: Collected, references: tuple[list[str], list[str]] | None) -> list[LayerScore]:
    """Fit on ``train``, score on ``test``, layer by layer.

    Args:
        references: texts of all recordings of both manifests; None leaves the letters out.
    Raises:
        UserError: too few recordings to fit.
    """
    if len(train.durations) < 10 or len(test.durations) < 2:
        raise UserError(
            f"probing needs at least 10 training and 2 test recordings, got {len(train.durations)} and "
            f"{len(test.durations)}; use longer manifests"
        )
    counts = None
    if references is not None:
        texts = [[side[i] for i in found.indices] for side, found in zip(references, (train, test), strict=True)]
        letters = scored_letters(*texts)
        if letters:
            counts = tuple(letter_counts(side, letters) for side in texts)
    scores = []
    for layer in train.frames:
        fit = fit_ridge(train.frames[layer], train.targets, train.groups)
        r2 = r2_score(test.targets, fit.predict(test.frames[layer]))
        found = _letters_score(train, test, layer, counts) if counts else (None, None)
        scores.append(LayerScore(layer, r2, *found))
    return scores


def format_table(trained: Sequence[LayerScore], untrained: Sequence[LayerScore] | None) -> str:
    """One line a layer; the untrained network stands beside the trained one."""

    def cells(score: LayerScore | None) -> list[str]:
        if score is None:
            return []
        letters = "-" if score.letters is None else f"{score.letters:.3f} ± {score.letters_error:.3f}"
        return [f"{score.mfcc:.3f}", letters]

    header = ["layer", "MFCC R2", "letters R2"] + (["MFCC R2, untrained", "letters R2, untrained"] if untrained else [])
    rows = [
        [str(score.layer), *cells(score), *cells(untrained[n] if untrained else None)]
        for n, score in enumerate(trained)
    ]
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]
    )
