"""Exact counts: every choice equally likely, equal keys settled by position, and unequal rows made equal."""

import pytest
import torch

from d2v_plugin.method.masking import GeneratorDraws, SampleDraws, same_count
from d2v_plugin.method.masking.counts import exactly, smallest, some_of


def noise(rows, n):
    return SampleDraws(1, 1, list(range(rows))).uniform("noise", n)


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_smallest_with_one_count_and_with_one_for_each_row(count):
    keys = noise(50, 9)
    expected = keys.argsort(dim=1).argsort(dim=1) < count
    assert torch.equal(smallest(keys, count), expected)
    assert torch.equal(smallest(keys, torch.full((50, 1), count)), expected)


@pytest.mark.parametrize("count", [3, torch.tensor([[3]])])
def test_equal_keys_go_by_position(count):
    keys = torch.tensor([[0.5, 0.25, 0.5, 0.5, 0.25, 0.5 + 2**-24]])
    assert smallest(keys, count).tolist() == [[True, True, False, False, True, False]]
    assert smallest(torch.zeros(1, 6), count).tolist() == [[True] * 3 + [False] * 3]


def test_masked_positions_stay_when_more_are_wanted_and_only_they_do_when_fewer():
    mask = noise(200, 30) < 0.5
    more, fewer = exactly(mask, 28, noise(200, 30)), exactly(mask, 2, noise(200, 30))
    assert more.sum(1).tolist() == [28] * 200 and not (mask & ~more).any()
    assert fewer.sum(1).tolist() == [2] * 200 and not (fewer & ~mask).any()
    valid = torch.arange(30) < 20
    within = exactly(mask & valid, 18, noise(200, 30), valid.expand(200, -1))
    assert within.sum(1).tolist() == [18] * 200 and not within[:, 20:].any()


def test_each_choice_is_equally_likely():
    rows = 8000
    mask = torch.tensor([[True, True, True, False, False, False]]).expand(rows, -1)
    removed = exactly(mask, 2, noise(rows, 6)).float().mean(0)
    added = exactly(mask, 4, noise(rows, 6)).float().mean(0)
    # four standard errors of a share of about a third
    assert (removed[:3] - 2 / 3).abs().max() < 0.022 and removed[3:].sum() == 0
    assert (added[3:] - 1 / 3).abs().max() < 0.022 and added[:3].min() == 1


def test_some_of_takes_candidates_only():
    candidates = torch.tensor([[True, False, True, True], [True, False, False, False], [False] * 4])
    picked = some_of(candidates, torch.tensor([[2], [2], [2]]), noise(3, 4))
    assert picked.sum(1).tolist() == [2, 1, 0] and not (picked & ~candidates).any()
    assert not some_of(candidates, torch.tensor([[0], [-3], [1]]), noise(3, 4)).any()


def test_rows_with_different_counts_get_the_mean():
    mask = torch.tensor([[True] * 6 + [False] * 4, [True] * 2 + [False] * 8, [True] * 5 + [False] * 5])
    equal, count = same_count(mask, SampleDraws(1, 1, [1, 2, 3]))
    assert count == 4 and equal.sum(1).tolist() == [4] * 3
    assert not (equal[0] & ~mask[0]).any() and not (mask[1] & ~equal[1]).any()


def test_rows_with_one_count_stay_as_they_are():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    assert same_count(mask, None) == (mask, 2)


def test_rows_that_differ_keep_something_and_mask_something():
    none, whole = torch.zeros(9, 5, dtype=torch.bool), torch.ones(9, 5, dtype=torch.bool)
    none[0, 0], whole[0, 0] = True, False
    draws = GeneratorDraws(torch.Generator(), 9)
    assert same_count(none, draws)[0].sum(1).tolist() == [1] * 9
    assert same_count(whole, draws)[0].sum(1).tolist() == [4] * 9
