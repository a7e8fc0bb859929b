"""Where in a recording each letter of its transcript is heard, according to a CTC model.

That is the most probable path through the CTC lattice of the transcript (Viterbi). The lattice has 2 L + 1 states, a
blank before, between and after the L symbols; a path moves on by 0 or 1 states a frame, or by 2 over the blank between
two symbols that differ. CTC gives most symbols one frame or two and blanks to the rest, so what is kept of a symbol is
the frame of its span where it is most probable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from d2v_plugin.eval.ctc import BLANK, WORD_BOUNDARY
from d2v_plugin.eval.decode import frame_scores
from d2v_plugin.eval.load import LoadedModel
from d2v_plugin.eval.utterances import Utterances

UNKNOWN = "<unk>"


@dataclass(frozen=True)
class AlignedLetters:
    """The letters of one transcript without its word boundaries, and the centres of their frames in seconds."""

    letters: str
    seconds: np.ndarray


def best_path(scores: np.ndarray, symbols: Sequence[int], blank: int = BLANK) -> np.ndarray | None:
    """The lattice state of every frame on the most probable path.

    Args:
        scores: (T, V) log-probabilities.
        symbols: L indices below V, none of them the blank.
    Returns:
        (T,) integers; state 2 n + 1 is symbol n, even states are blanks. None when T frames are too few for the
        symbols (and a blank between equal neighbours), or no path has a probability above 0.
    """
    states = np.full(2 * len(symbols) + 1, blank)
    states[1::2] = symbols
    emitted = scores[:, states].astype(np.float64)
    may_skip = np.zeros(len(states), dtype=bool)
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    # row k: the best score of a path that comes from k states before
    arriving = np.full((3, len(states)), -np.inf)
    steps = np.zeros(emitted.shape, dtype=np.int8)
    score = np.full(len(states), -np.inf)
    score[:2] = emitted[0, :2]
    for t in range(1, len(emitted)):
        arriving[0] = score
        arriving[1, 1:] = score[:-1]
        arriving[2, 2:] = np.where(may_skip[2:], score[:-2], -np.inf)
        steps[t] = arriving.argmax(0)
        score = arriving.max(0) + emitted[t]
    last = len(states) - 2 + int(score[-2:].argmax()) if len(symbols) else 0
    if score[last] == -np.inf:
        return None
    path = np.empty(len(emitted), dtype=np.int64)
    for t in range(len(emitted) - 1, -1, -1):
        path[t] = last
        last -= int(steps[t, last])
    return path


def symbol_frames(scores: np.ndarray, symbols: Sequence[int], blank: int = BLANK) -> np.ndarray | None:
    """(L,) frames, for each symbol the one of its span on :func:`best_path` where it is most probable, else None."""
    path = best_path(scores, symbols, blank)
    if path is None:
        return None
    # spans are unbroken and follow each other
    starts = np.searchsorted(path, 2 * np.arange(len(symbols)) + 1)
    ends = np.searchsorted(path, 2 * np.arange(len(symbols)) + 2)
    spans = zip(starts, ends, symbols, strict=True)
    return np.array([start + scores[start:end, symbol].argmax() for start, end, symbol in spans], dtype=np.int64)


def iterate_alignments(
    loaded: LoadedModel, utterances: Utterances, references: Sequence[str], max_seconds: float
) -> Iterator[tuple[int, AlignedLetters | None]]:
    """(position in the manifest, where its letters are), longest first.

    None stands for a recording that has too few frames for its transcript.

    Args:
        loaded: a CTC model. A letter it does not know is aligned as its ``<unk>``.
        references: texts of all recordings of the manifest.
    """
    index_of = {symbol: n for n, symbol in enumerate(loaded.symbols)}
    for batch in utterances.batches(max_seconds):
        scores, counts = frame_scores(loaded, batch)
        for row, index, count in zip(scores.cpu().numpy(), batch.indices, counts, strict=True):
            # as labels are written, the last word ends in a boundary, too
            symbols = [*references[index].replace(" ", WORD_BOUNDARY), WORD_BOUNDARY]
            frames = symbol_frames(row[:count], [index_of.get(s, index_of[UNKNOWN]) for s in symbols])
            if frames is None:
                yield index, None
                continue
            kept = [n for n, symbol in enumerate(symbols) if symbol != WORD_BOUNDARY]
            seconds = (frames[kept] * loaded.stride + (loaded.receptive_field - 1) / 2) / loaded.sample_rate
            yield index, AlignedLetters("".join(symbols[n] for n in kept), seconds)
