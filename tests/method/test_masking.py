"""Span masks: their rules, and their distribution against fairseq's sampler."""

import numpy as np
import pytest
import torch
from fairseq.data.data_utils import compute_mask_indices

from d2v_plugin.method.masking import span_mask


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def runs(row):
    """Lengths of the masked runs of one row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("lengths", [[100] * 2000, [100] * 1000 + [60] * 1000], ids=["full", "padded"])
@pytest.mark.parametrize("prob, span", [(0.65, 10), (0.3, 3), (0.9, 4)])
def test_matches_fairseq_in_distribution(prob, span, lengths):
    padding = torch.arange(100) >= torch.tensor(lengths)[:, None]
    rule = {"min_masks": 1, "require_same_masks": False}
    seeded = {"seed": 1, "epoch": 1, "indices": torch.arange(2000)}  # it draws from an unseeded generator otherwise
    theirs = compute_mask_indices((2000, 100), padding, prob, span, **rule, **seeded)
    ours = span_mask(lengths, 100, prob=prob, span=span, generator=rng(), **rule).numpy()
    assert not (ours & padding.numpy()).any()
    # Bounds are about four standard errors of each difference, which is at most 0.002, 0.15, 0.02 and 0.1.
    assert abs(ours.mean() - theirs.mean()) < 0.008
    assert abs(ours.sum(1).std() - theirs.sum(1).std()) < 0.6
    places = [m.mean(0).reshape(10, 10).mean(1) for m in (ours, theirs)]
    assert np.abs(places[0] - places[1]).max() < 0.06
    lengths = [np.concatenate([runs(row) for row in m]).mean() for m in (ours, theirs)]
    assert abs(lengths[0] - lengths[1]) < 0.4


def test_same_count_in_every_row_and_dropout():
    mask = span_mask([80, 50, 33], 80, prob=0.65, span=10, min_masks=1, generator=rng())
    assert len(set(mask.sum(1).tolist())) == 1
    assert not mask[2, 33:].any()
    thinned = span_mask([80] * 3, 80, prob=0.65, span=10, min_masks=1, mask_dropout=0.5, generator=rng())
    whole = span_mask([80] * 3, 80, prob=0.65, span=10, min_masks=1, generator=rng())
    assert (thinned.sum(1) - whole.sum(1) * 0.5).abs().max() <= 0.5
    assert not (thinned & ~whole).any()


@pytest.mark.parametrize("selection, other", [("static", 0), ("uniform", 2), ("normal", 2.0), ("poisson", 0)])
def test_span_lengths(selection, other):
    rule = {"selection": selection, "other": other, "min_masks": 1, "require_same_masks": False}
    mask = span_mask([500] * 200, 500, prob=0.02, span=10, generator=rng(), **rule).numpy()
    lengths = np.concatenate([runs(r) for r in mask])
    if selection == "static":
        assert set(lengths) == {10}
    else:
        assert lengths.std() > 1
    assert 8 < lengths.mean() < 12.5


def test_spans_that_may_not_overlap_keep_their_distance():
    rule = {"no_overlap": True, "min_space": 2, "require_same_masks": False}
    mask = span_mask([100] * 50, 100, prob=0.6, span=10, generator=rng(), **rule).numpy()
    for row in mask:
        assert set(runs(row)) == {10}
        gaps = runs(~row)
        assert (gaps[1:-1] >= 2).all()
    starts = {tuple(np.flatnonzero(row)[:1]) for row in mask}
    assert len(starts) > 5


def test_repeats_with_the_generator_and_only_then():
    draws = [span_mask([200] * 4, 200, prob=0.5, span=5, generator=rng(s)) for s in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_nothing_to_mask():
    assert not span_mask([50] * 3, 50, prob=0.0, span=10, generator=rng()).any()


@pytest.mark.parametrize("length", [3, 9, 10])
def test_an_impossible_mask_says_what_to_change(length):
    with pytest.raises(ValueError, match=r"mask_prob .* nothing of \d+ frames: lower one of them, or raise task.min_"):
        span_mask([100, length], 100, prob=1.0, span=1 if length == 3 else 10, min_masks=length, generator=rng())


def test_an_impossible_channel_mask_names_its_own_keys():
    with pytest.raises(ValueError, match=r"mask_channel_prob 1.0 with mask_channel_length 1 .* channels: lower one"):
        span_mask([8], 8, prob=1.0, span=1, min_masks=8, generator=rng(), name="mask_channel")


def test_lengths_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="mask_other must lie between 0 and 2"):
        span_mask([50], 50, prob=0.5, span=4, selection="uniform", other=9)


def test_unknown_selection():
    with pytest.raises(ValueError, match="mask_selection must be one of static"):
        span_mask([50], 50, prob=0.5, span=10, selection="gaussian")
