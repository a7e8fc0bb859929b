"""Span masks: their rules, and their distribution against fairseq's sampler."""

import mask_statistics
import numpy as np
import pytest
import torch
from fairseq.data.data_utils import compute_mask_indices

from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import SampleDraws, span_mask


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


# -- drawn by sample -------------------------------------------------------------------------------

SPANS = {
    "1.0 speech": (100, {"prob": 0.65, "span": 10, "min_masks": 1}),
    "1.0 text": (64, {"prob": 0.35, "span": 4, "min_masks": 1}),
    "short rows": (12, {"prob": 0.6, "span": 10, "min_masks": 1}),
    "thinned": (60, {"prob": 0.5, "span": 5, "min_masks": 1, "require_same_masks": True}),
    "filled": (60, {"prob": 0.5, "span": 5, "min_masks": 1, "require_same_masks": True, "add_masks": True}),
    "dropout": (60, {"prob": 0.5, "span": 5, "min_masks": 1, "mask_dropout": 0.25}),
}


def by_batch(masks, T):
    """Numbers per batch of 4 rows, which a common count ties together."""
    return mask_statistics.numbers(masks, (1, T)).reshape(len(masks) // 4, 4, -1).mean(1)


def sampled(T, rule, batches=700):
    rule = {"require_same_masks": False, **rule}
    masks = [
        span_mask([T] * 4, T, draws=SampleDraws(1, 1, list(range(4 * i, 4 * i + 4))), **rule) for i in range(batches)
    ]
    return by_batch(torch.cat(masks), T)


def upstream(T, rule, batches=700):
    rule = {"require_same_masks": False, **rule}
    masks = []
    for i in range(batches):
        seeded = {"seed": 1, "epoch": 1, "indices": torch.arange(4 * i, 4 * i + 4)}
        named = {key: value for key, value in rule.items() if key not in ("prob", "span")}
        masks.append(compute_mask_indices((4, T), None, rule["prob"], rule["span"], **named, **seeded))
    return by_batch(np.concatenate(masks), T)


@pytest.mark.parametrize("name", SPANS)
def test_drawn_by_sample_as_fairseq_draws_them(name):
    assert mask_statistics.distance(sampled(*SPANS[name]), upstream(*SPANS[name])) < mask_statistics.LIMIT


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("1.0 speech", {"span": 9}), ("filled", {"add_masks": False}), ("thinned", {"add_masks": True})],
)
def test_the_comparison_sees_a_setting_that_does_nothing(name, wrong):
    T, rule = SPANS[name]
    assert mask_statistics.distance(sampled(T, {**rule, **wrong}), upstream(T, rule)) > 2 * mask_statistics.LIMIT


def test_a_row_does_not_depend_on_its_batch():
    rule = {"prob": 0.65, "span": 10, "min_masks": 1, "require_same_masks": False, "mask_dropout": 0.1}
    batch = span_mask([80, 50, 33, 80], 80, draws=SampleDraws(1, 7, [5, 6, 7, 8]), **rule)
    part = span_mask([33, 80], 90, draws=SampleDraws(1, 7, [7, 5]), **rule)
    assert torch.equal(part[:, :80], batch[[2, 0]]) and not part[:, 80:].any()
    assert not torch.equal(batch[0], batch[3])


@pytest.mark.parametrize("draws", [None, SampleDraws(1, 1, [1, 2, 3])], ids=["generator", "sample"])
def test_rows_are_filled_up_to_the_largest_count_but_not_whole(draws):
    rule = {"prob": 0.65, "span": 10, "min_masks": 1, "add_masks": True, "generator": rng(), "draws": draws}
    mask = span_mask([80, 50, 33], 80, **rule)
    assert mask.sum(1).tolist() == [32] * 3
    assert not mask[2, 33:].any() and not mask[1, 50:].any()


def test_spans_by_sample_read_nothing_back():
    # a meta tensor has no values, so a read raises
    for more in ({}, {"add_masks": True}, {"mask_dropout": 0.2}, {"require_same_masks": False}):
        draws = SampleDraws(1, 1, [1, 2], device="meta")
        assert span_mask([80, 50], 80, prob=0.65, span=10, draws=draws, **more).device.type == "meta"


def test_a_row_that_chance_masks_whole_keeps_a_frame():
    # with a generator the same settings are an error in some draws
    mask = span_mask(
        [5] * 400, 5, prob=0.9, span=2, min_masks=3, draws=SampleDraws(1, 1, list(range(400))), require_same_masks=False
    )
    assert mask.sum(1).tolist() == [4] * 400
    assert (~mask).any(0).all()
    with pytest.raises(UserError, match="leaves nothing of 5 frames"):
        span_mask([5] * 400, 5, prob=0.9, span=2, min_masks=3, generator=rng())


def test_spans_by_sample_that_cannot_work():
    draws = SampleDraws(1, 1, [1, 2])
    with pytest.raises(UserError, match="leaves nothing of 3 frames: lower one of them, or raise task.min_sample_size"):
        span_mask([100, 3], 100, prob=1.0, span=1, draws=draws)
    for more in ({"selection": "poisson"}, {"no_overlap": True}):
        with pytest.raises(UserError, match="masks by sample are drawn with mask_selection=static"):
            span_mask([100, 80], 100, prob=0.5, span=10, draws=draws, **more)
