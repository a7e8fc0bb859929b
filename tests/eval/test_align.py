"""Alignment: the best path of every lattice small enough to list all paths, and frames of a whole model."""

import itertools

import numpy as np
import pytest
from tiny_speech import SAMPLE_RATE, TEXTS

from d2v_plugin.eval.align import best_path, iterate_alignments, symbol_frames
from d2v_plugin.eval.load import load_model
from d2v_plugin.eval.utterances import Utterances


def collapse(path):
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != 0]


def log_probabilities(seed, frames, symbols):
    logits = 2 * np.random.default_rng(seed).standard_normal((frames, symbols))
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
@pytest.mark.parametrize("symbols", [[], [1], [1, 1], [1, 2], [2, 1, 2], [1, 1, 2], [2, 2, 2]])
def test_no_other_path_is_better(frames, symbols):
    for seed in range(5):
        scores = log_probabilities(seed, frames, 3)
        paths = [p for p in itertools.product(range(3), repeat=frames) if collapse(p) == symbols]
        found = best_path(scores, symbols)
        if not paths:
            assert found is None and symbol_frames(scores, symbols) is None
            continue
        emitted = tuple(symbols[state // 2] if state % 2 else 0 for state in found)
        assert emitted == max(paths, key=lambda path: sum(scores[t, symbol] for t, symbol in enumerate(path)))


def test_a_symbol_stands_at_the_peak_of_its_span():
    heard = [0, 1, 1, 1, 0, 1, 2, 2, 0]
    scores = np.full((9, 3), -6.0)
    scores[np.arange(9), heard] = [-0.1, -0.5, -0.2, -0.3, -0.1, -0.1, -0.4, -0.3, -0.1]
    assert symbol_frames(scores, [1, 1, 2]).tolist() == [2, 5, 7]
    # the same frames have to do where the transcript is another one
    assert symbol_frames(scores, [1, 2]).tolist() == [5, 7]


def test_impossible_symbols_have_no_path():
    scores = log_probabilities(0, 4, 3)
    scores[:, 2] = -np.inf
    assert best_path(scores, [1, 2]) is None


def test_letters_of_a_manifest(corpus, finetuned):
    loaded = load_model(finetuned)
    utterances = Utterances(corpus.manifest, SAMPLE_RATE, True, loaded.receptive_field)
    # an unknown letter is aligned as well; 99 letters do not fit into 1.5 seconds
    texts = [*TEXTS[:6], "x y", "e" * 99]
    found = dict(iterate_alignments(loaded, utterances, texts, 2.0))
    assert found.pop(7) is None and sorted(found) == list(range(7))
    for index, aligned in found.items():
        assert aligned.letters == texts[index].replace(" ", "")
        centres = (aligned.seconds * SAMPLE_RATE - (loaded.receptive_field - 1) / 2) / loaded.stride
        np.testing.assert_allclose(centres, np.rint(centres), atol=1e-6)
        assert (np.diff(centres) > 0).all() and centres[0] >= 0
        assert aligned.seconds[-1] * SAMPLE_RATE < utterances.manifest.sizes[index]
