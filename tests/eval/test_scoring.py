"""Error rates over a corpus."""

import math

import pytest

from d2v_plugin.eval.scoring import ErrorRate, score


def test_counts_are_summed_over_the_corpus():
    found = score(["a b c d", "x"], ["a b x d", "x y"])
    assert found.words == ErrorRate(substitutions=1, insertions=1, deletions=0, units=5)
    assert found.words.rate == pytest.approx(0.4)
    assert found.characters.errors == 3 and found.characters.units == 8


def test_empty_hypothesis_and_empty_reference():
    assert score(["a b"], [""]).words == ErrorRate(0, 0, 2, 2)
    assert score(["a b", ""], ["a b", "c"]).words == ErrorRate(0, 1, 0, 2)


def test_description():
    assert score(["a b"], ["a c"]).words.describe("WER", "words") == (
        "WER  50.00 %  (1 substituted, 0 inserted, 0 deleted of 2 words)"
    )
    assert math.isnan(ErrorRate(0, 0, 0, 0).rate)


def test_nothing_to_score():
    with pytest.raises(ValueError, match="one hypothesis a reference"):
        score([], [])
    with pytest.raises(ValueError, match="all 2 references are empty"):
        score(["", " "], ["a", "b"])
