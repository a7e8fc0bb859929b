"""Greedy decoding and letters to words."""

import pytest
import torch

from d2v_plugin.eval.ctc import greedy_ctc, label_line_to_text, symbols_to_text


def scores_of(*rows):
    return torch.nn.functional.one_hot(torch.tensor(rows), 6).float().log_softmax(-1)


def test_repeats_merge_and_blanks_separate():
    decoded = greedy_ctc(scores_of([0, 4, 4, 0, 4, 5, 5, 0], [3, 3, 3, 0, 0, 4, 4, 4]), [8, 5])
    assert decoded == [[4, 4, 5], [3]]


def test_all_blank_and_zero_length():
    assert greedy_ctc(scores_of([0, 0, 0], [4, 5, 4]), [3, 0]) == [[], []]


def test_other_blank():
    assert greedy_ctc(scores_of([5, 0, 0, 5, 0]), [5], blank=5) == [[0, 0]]


def test_lengths_must_match():
    with pytest.raises(ValueError, match="one length a row"):
        greedy_ctc(scores_of([0, 1]), [2, 2])


def test_text():
    assert label_line_to_text("H I | Y O U |\n") == "HI YOU"
    assert label_line_to_text("") == ""
    assert symbols_to_text(["<pad>", "|", "A", "|", "|", "B", "</s>"]) == "A B"
    assert symbols_to_text(["A", "<unk>"]) == "A<unk>"
