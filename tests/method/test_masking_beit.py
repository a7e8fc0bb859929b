"""BEiT's block masks: fairseq's distribution, rows that stand alone, and settings that cannot work."""

import random
from types import SimpleNamespace

import mask_statistics
import pytest
import torch
import upstream

from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import BeitMasks, GeneratorDraws, SampleDraws

ROWS = 8000
# side, patches to mask, smallest and largest block; the first two are fairseq's default and the paper's
RULES = {
    "port": (14, 75, 16, 196),
    "paper": (14, 120, 16, 196),
    "small blocks": (14, 60, 4, 12),
    "small grid": (6, 20, 3, 36),
    "nearly all": (8, 60, 5, 64),
}


def draws(rows=ROWS, seed=1, update=1):
    return SampleDraws(seed, update, list(range(rows)))


def theirs(rule):
    """Masks of fairseq's model, which asks nothing of it but the grid; Python's seed makes them repeat."""
    side, *numbers = rule
    module = upstream.load("data2vec_vision")
    random.seed(5)
    with upstream.current_stack():
        found = module.Data2VecVisionModel.make_mask(SimpleNamespace(window_size=(side, side)), ROWS, *numbers)
    return found.flatten(1).bool()


def statistics(masks, side):
    return mask_statistics.numbers(masks, (side, side))


@pytest.mark.parametrize("name", RULES)
def test_drawn_as_fairseq_draws_them(name):
    rule = RULES[name]
    expected, found = theirs(rule), BeitMasks(*rule).draw(draws())
    keep = expected.any(1)  # where fairseq leaves a row without a block, here another follows
    assert mask_statistics.distance(statistics(found, rule[0]), statistics(expected[keep], rule[0])) < (
        mask_statistics.LIMIT
    )


@pytest.mark.parametrize("wrong", [(14, 76, 16, 196), (14, 75, 12, 196), (14, 75, 16, 40)])
def test_the_comparison_sees_another_setting(wrong):
    found = statistics(BeitMasks(*wrong).draw(draws()), 14)
    assert mask_statistics.distance(found, statistics(theirs(RULES["port"]), 14)) > 2 * mask_statistics.LIMIT


@pytest.mark.parametrize("name", RULES)
def test_rows_have_the_number_or_somewhat_fewer(name):
    side, count, smallest, _ = RULES[name]
    counts = BeitMasks(*RULES[name]).draw(draws()).sum(1)
    assert counts.max() == count and counts.min() >= 1
    assert counts.float().mean() > 0.9 * count


def test_a_function_of_seed_update_and_sample_alone():
    masks = BeitMasks(*RULES["paper"])
    whole = masks.draw(draws(50))
    assert torch.equal(masks.draw(draws(50)), whole)
    some = masks.draw(SampleDraws(1, 1, [31, 7, 7]))
    assert torch.equal(some, whole[[31, 7, 7]])
    for other in (draws(50, seed=2), draws(50, update=2)):
        assert (masks.draw(other) != whole).any(1).sum() > 45


def test_from_a_generator():
    masks = BeitMasks(*RULES["port"])
    first, again, other = (masks.draw(GeneratorDraws(torch.Generator().manual_seed(seed), 200)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert abs(float(first.sum(1).float().mean()) - 74.5) < 0.5


@pytest.mark.parametrize("side", range(2, 9))
def test_no_row_is_left_without_a_block(side):
    """Down to blocks of one exact size, which few rectangles meet: the drawing ends, and every row has something."""
    for count in range(1, (side - 1) ** 2 + 1):
        found = BeitMasks(side, count, count, side**2).draw(draws(40)).sum(1)
        assert found.min() > 0 and found.max() <= count


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ((14, 196, 16, 196), r"model.num_mask_patches=196 must be at least 1 and below 196, the image's 14 x 14"),
        ((6, 75, 16, 196), r"model.num_mask_patches=75 must be at least 1 and below 36"),
        ((14, 0, 16, 196), "model.num_mask_patches=0"),
        ((14, 75, 20, 19), "min_mask_patches_per_block=20 must be .* at most model.max_mask_patches_per_block=19"),
        ((14, 75, 0, 19), "model.min_mask_patches_per_block=0 must be at least 1"),
        ((14, 12, 16, 196), "model.min_mask_patches_per_block=16 is more than model.num_mask_patches=12"),
        ((5, 20, 17, 25), "no block of so many patches fits inside the image's 5 x 5 .* lower it to 16 or less"),
    ],
)
def test_settings_that_cannot_work(rule, message):
    with pytest.raises(UserError, match=message):
        BeitMasks(*rule)
