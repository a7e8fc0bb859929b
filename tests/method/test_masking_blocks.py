"""Block masks: fairseq's distribution, exact counts, rows that stand alone, and settings that cannot work."""

import mask_statistics
import pytest
import torch
from fairseq.data.data_utils import compute_block_mask_1d, compute_block_mask_2d

from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import GeneratorDraws, SampleDraws, block_mask, block_masked_count

IMAGE, AUDIO = (14, 14), (500,)
# name -> grid and settings; the first four are the papers' recipes
RULES = {
    "image base": (IMAGE, {"prob": 0.8, "adjust": 0.07, "length": 3, "inverse": True}),
    "image large": (IMAGE, {"prob": 0.75, "adjust": 0.1, "length": 3, "inverse": True}),
    "audio base": (AUDIO, {"prob": 0.5, "adjust": 0.05, "length": 5}),
    "audio large": (AUDIO, {"prob": 0.55, "adjust": 0.1, "length": 5}),
    "image, even": (IMAGE, {"prob": 0.4, "adjust": 0.1, "length": 4}),
    "audio, even and inverse": ((61,), {"prob": 0.6, "adjust": 0.05, "length": 2, "inverse": True}),
    "image, expanding": (IMAGE, {"prob": 0.8, "length": 3, "inverse": True, "expand_adjacent": True}),
    "audio, expanding": ((99,), {"prob": 0.5, "length": 5, "expand_adjacent": True, "dropout": 0.2}),
    "image, tiles": (IMAGE, {"prob": 0.6, "adjust": 0.05, "length": 3, "non_overlapping": True}),
    "audio, tiles": ((98,), {"prob": 0.6, "adjust": 0.05, "length": 5, "inverse": True, "non_overlapping": True}),
    "image, dropout": (IMAGE, {"prob": 0.8, "adjust": 0.07, "length": 3, "inverse": True, "dropout": 0.3}),
    "audio, dropout": ((99,), {"prob": 0.5, "adjust": 0.05, "length": 5, "dropout": 0.3}),
    "image, inexact": (IMAGE, {"prob": 0.8, "adjust": 0.07, "length": 3, "inverse": True, "exact": False}),
    "audio, inexact": ((99,), {"prob": 0.5, "length": 5, "exact": False}),
    "audio, inexact tiles": ((98,), {"prob": 0.5, "length": 5, "exact": False, "non_overlapping": True}),
}
THEIR_NAMES = {
    "prob": "mask_prob",
    "length": "mask_length",
    "adjust": "mask_prob_adjust",
    "inverse": "inverse_mask",
    "exact": "require_same_masks",
    "dropout": "mask_dropout",
    "expand_adjacent": "expand_adjcent",
    "non_overlapping": "non_overlapping",
}


def draws(rows, seed=1, **options):
    return SampleDraws(seed, 1, list(range(rows)), **options)


def rows_for(grid, rule):
    # fairseq grows its masks row by row
    return 3000 if grid == AUDIO or "expand_adjacent" in rule else 8000


def upstream(grid, rule):
    """Numbers of fairseq's masks; the test's seed makes them repeat."""
    named = {THEIR_NAMES[key]: value for key, value in rule.items()}
    if len(grid) == 1:
        masks = compute_block_mask_1d((rows_for(grid, rule), grid[0]), **named)
    else:
        masks = compute_block_mask_2d((rows_for(grid, rule), grid[0] * grid[1]), **named)
    return mask_statistics.numbers(masks.flatten(1), (1, *grid)[-2:])


def ours(grid, rule):
    return mask_statistics.numbers(block_mask(draws(rows_for(grid, rule)), grid, **rule), (1, *grid)[-2:])


@pytest.mark.parametrize("name", RULES)
def test_drawn_as_fairseq_draws_them(name):
    grid, rule = RULES[name]
    assert mask_statistics.distance(ours(grid, rule), upstream(grid, rule)) < mask_statistics.LIMIT


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("image base", {"adjust": 0.0}),
        ("image base", {"length": 2}),
        ("image base", {"adjust": 0.27, "length": 4}),
        ("image base", {"dropout": 0.3}),
        ("audio base", {"adjust": 0.0}),
        ("audio base", {"adjust": 0.1}),
        ("audio base", {"length": 4}),
        ("audio base", {"expand_adjacent": True}),
        ("image, tiles", {"non_overlapping": False}),
        ("image, expanding", {"expand_adjacent": False}),
        ("audio, dropout", {"dropout": 0.0}),
        ("image, inexact", {"exact": True}),
    ],
)
def test_the_comparison_sees_a_setting_that_does_nothing(name, wrong):
    grid, rule = RULES[name]
    assert mask_statistics.distance(ours(grid, {**rule, **wrong}), upstream(grid, rule)) > 2 * mask_statistics.LIMIT


@pytest.mark.parametrize("name", ["image, even", "audio, even and inverse"])
def test_the_comparison_sees_blocks_one_position_off(name):
    grid, rule = RULES[name]
    masks = block_mask(draws(rows_for(grid, rule)), grid, **rule).view(-1, *grid).flip(-1).flatten(1)
    mirrored = mask_statistics.numbers(masks, (1, *grid)[-2:])
    assert mask_statistics.distance(mirrored, upstream(grid, rule)) > 2 * mask_statistics.LIMIT


@pytest.mark.parametrize("name", [name for name, (_, rule) in RULES.items() if rule.get("exact", True)])
def test_every_row_has_the_count_known_beforehand(name):
    grid, rule = RULES[name]
    count = block_masked_count(grid, prob=rule["prob"], inverse=rule.get("inverse", False))
    masks = block_mask(draws(50, clones=4), grid, **rule)
    assert masks.shape == (200, grid[0] * grid[-1] if len(grid) == 2 else grid[0]) and masks.dtype == torch.bool
    assert masks.sum(1).tolist() == [count] * 200


def test_the_papers_counts():
    assert block_masked_count((14, 14), prob=0.8, inverse=True) == 157
    assert block_masked_count((16, 16), prob=0.75, inverse=True) == 192
    assert block_masked_count((499,), prob=0.5) == 249
    assert block_masked_count((499,), prob=0.55) == 274


def test_a_grid_need_not_be_square():
    rule = {"prob": 0.8, "adjust": 0.07, "length": 3, "inverse": True}
    masks = block_mask(draws(4000), (6, 20), **rule)
    assert masks.sum(1).tolist() == [96 + 1] * 4000  # int(120 * (1 - 0.8)) is 23
    # blocks are as common along one side as along the other: pairs of kept neighbours, per pair of cells
    kept = (~masks).view(-1, 6, 20).float()
    across, down = (kept[:, :, 1:] * kept[:, :, :-1]).mean(), (kept[:, 1:] * kept[:, :-1]).mean()
    assert abs(across / down - 1) < 0.1
    transposed = block_mask(draws(4000, seed=2), (20, 6), **rule).view(-1, 20, 6).transpose(1, 2).flatten(1)
    pair = [mask_statistics.numbers(each, (6, 20)) for each in (masks, transposed)]
    assert mask_statistics.distance(*pair) < mask_statistics.LIMIT


@pytest.mark.parametrize("name", RULES)
def test_a_row_does_not_depend_on_its_batch(name):
    grid, rule = RULES[name]
    batch = block_mask(SampleDraws(1, 7, [5, 6, 7, 8], clones=2), grid, **rule)
    part = block_mask(SampleDraws(1, 7, [8, 5], clones=2), grid, **rule)
    assert torch.equal(part, batch[[6, 7, 0, 1]])
    assert not torch.equal(batch[0], batch[1]) and not torch.equal(batch[0], batch[2])
    assert not torch.equal(batch, block_mask(SampleDraws(1, 8, [5, 6, 7, 8], clones=2), grid, **rule))


@pytest.mark.parametrize("name", [name for name, (_, rule) in RULES.items() if "expand_adjacent" not in rule])
def test_nothing_is_read_back(name):
    # a meta tensor has no values, so a read raises
    grid, rule = RULES[name]
    assert block_mask(draws(4, device="meta"), grid, **rule).device.type == "meta"
    if len(grid) == 1 and rule.get("exact", True):
        lengths = [grid[0] - n for n in range(4)]
        assert block_mask(draws(4, device="meta"), grid, lengths=lengths, **rule).device.type == "meta"


def test_a_generator_serves_too():
    rule = {"prob": 0.5, "length": 5, "adjust": 0.05}
    masks = [block_mask(GeneratorDraws(torch.Generator().manual_seed(s), 8), (100,), **rule) for s in (3, 3, 4)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.gpu
@pytest.mark.parametrize("name", RULES)
def test_the_same_masks_on_a_gpu(name):
    grid, rule = RULES[name]
    on_gpu = block_mask(draws(64, clones=4, device="cuda"), grid, **rule)
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), block_mask(draws(64, clones=4), grid, **rule))


# -- rows with lengths of their own ---------------------------------------------------------------


RAGGED = {
    "blocks": {"prob": 0.5, "adjust": 0.05, "length": 5},
    "inverse": {"prob": 0.6, "adjust": 0.05, "length": 5, "inverse": True},
    "expanding": {"prob": 0.5, "length": 5, "expand_adjacent": True},
    "tiles": {"prob": 0.5, "length": 5, "non_overlapping": True},
    "dropout": {"prob": 0.5, "length": 5, "dropout": 0.2},
}


@pytest.mark.parametrize("name", RAGGED)
def test_rows_of_all_lengths_have_one_count_and_no_masked_padding(name):
    rule = RAGGED[name]
    lengths = [90, 90, 70, 61, 41, 90]
    count = block_masked_count((90,), prob=rule["prob"], inverse=rule.get("inverse", False), lengths=lengths)
    assert count == (41 - int(41 * 0.4) if name == "inverse" else 20)
    masks = block_mask(draws(6), (90,), lengths=lengths, **rule)
    assert masks.sum(1).tolist() == [count] * 6
    for mask, length in zip(masks, lengths, strict=True):
        assert not mask[length:].any() and not mask[:length].all()


@pytest.mark.parametrize("name", RAGGED)
def test_full_rows_are_those_without_lengths(name):
    rule = RAGGED[name]
    assert torch.equal(block_mask(draws(8), (90,), lengths=[90] * 8, **rule), block_mask(draws(8), (90,), **rule))


@pytest.mark.parametrize("name", [name for name in RAGGED if name != "expanding"])
def test_a_short_row_is_drawn_as_in_a_batch_of_its_length(name):
    rule, rows = RAGGED[name], 1500
    among = block_mask(draws(rows), (90,), lengths=[60] * (rows - 2) + [90, 90], **rule)[:-2, :60]
    alone = block_mask(draws(rows, seed=2), (60,), **rule)
    pair = [mask_statistics.numbers(each, (1, 60)) for each in (among, alone)]
    assert mask_statistics.distance(*pair) < mask_statistics.LIMIT


def test_a_long_row_keeps_whole_blocks_when_a_short_one_sets_the_count():
    rows, rule = 1000, RAGGED["blocks"]
    masks = block_mask(draws(rows), (200,), lengths=[200] * (rows - 1) + [50], **rule)[:-1]
    runs = mask_statistics.numbers(masks, (1, 200))[:, -mask_statistics.LONGEST_RUN :].mean(0)
    thinned = block_mask(draws(rows), (200,), **rule)
    thinned &= torch.rand(thinned.shape) < 0.25
    alone = mask_statistics.numbers(thinned, (1, 200))[:, -mask_statistics.LONGEST_RUN :].mean(0)
    # of the 25 masked frames few stand alone, where thinning leaves most of them so
    assert runs[0] < 3 and alone[0] > 10
    assert runs[4] == runs.max()


@pytest.mark.parametrize("length", [2, 3, 4])
def test_rows_shorter_than_a_block_are_masked_in_part(length):
    masks = block_mask(draws(3), (30,), lengths=[30, length, 12], prob=0.1, length=5)
    assert masks.sum(1).tolist() == [1] * 3 and not masks[1, length:].any()
    masks = block_mask(draws(3), (30,), lengths=[30, length, 12], prob=0.99, length=5)
    assert masks.sum(1).tolist() == [length - 1] * 3 and not masks[1, length:].any()


# -- what cannot work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"prob": 1.2}, "mask_prob must lie between 0 and 1, got 1.2"),
        ({"prob": -0.1}, "mask_prob must lie between 0 and 1, got -0.1"),
        ({"prob": 0.001}, "mask_prob 0.001 masks none of 196 positions: raise it"),
        ({"prob": 1.0}, "mask_prob 1.0 leaves nothing of 196 positions: lower it"),
        ({"prob": 0.0, "inverse": True}, "mask_prob 0.0 masks none of 196"),
        ({"prob": 0.999, "inverse": True}, "mask_prob 0.999 leaves nothing of 196"),
        ({"prob": 0.01, "exact": False}, "mask_prob 0.01 gives no block of 3 in 196 positions"),
        ({"prob": 0.99, "exact": False, "inverse": True}, "mask_prob 0.99 gives no block of 3"),
        ({"length": 0}, "mask_length must lie between 1 and the grid's side of 14 positions, got 0"),
        ({"length": 15}, "mask_length must lie between 1 and the grid's side of 14 positions, got 15"),
        ({"adjust": -0.6}, "mask_prob_adjust -0.6 takes more than the share of 0.5 that blocks cover"),
        ({"adjust": -0.6, "inverse": True}, "mask_prob_adjust -0.6 takes more"),
        ({"dropout": -0.1}, "mask_dropout must not be negative, got -0.1"),
        ({"adjust": 0.6, "non_overlapping": True}, "mask_prob_adjust 0.6.* more than all"),
        ({"adjust": 0.1, "dropout": 0.7, "non_overlapping": True}, "mask_dropout 0.7.* more than all"),
    ],
)
def test_settings_that_cannot_work(change, part):
    with pytest.raises(UserError, match=part) as caught:
        block_mask(draws(2), (14, 14), **{"prob": 0.5, "length": 3, **change})
    assert "\n" not in str(caught.value)


def test_a_row_of_one_frame_cannot_be_masked_in_part():
    with pytest.raises(UserError, match="a row of 1 frames cannot be masked in part: raise min_sample_size"):
        block_mask(draws(2), (14,), prob=0.5, length=3, lengths=[14, 1])


@pytest.mark.parametrize(("grid", "exact"), [((14, 14), True), ((14,), False)])
def test_lengths_need_one_dimension_and_an_exact_count(grid, exact):
    with pytest.raises(ValueError, match="1-D grid and an exact count"):
        block_mask(draws(2), grid, prob=0.5, length=3, lengths=[14, 10], exact=exact)
