"""Masks of single positions: fairseq's count, every set equally likely, and settings that cannot work."""

import mask_statistics
import pytest
import torch

from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import SampleDraws, random_mask, random_masked_count


def upstream(rows, L, prob):
    """Numbers of the masks of upstream's ``random_masking``: noise, and the positions of the least of it are kept."""
    noise = torch.rand(rows, L)
    kept = int(L * (1 - prob))
    return mask_statistics.numbers(noise.argsort(dim=1).argsort(dim=1) >= kept, (1, L))


@pytest.mark.parametrize(("L", "prob"), [(64, 0.48), (196, 0.75), (97, 0.15)])
def test_count_and_distribution(L, prob):
    rows = 2000
    masks = random_mask(SampleDraws(1, 1, list(range(rows))), L, prob)
    assert masks.shape == (rows, L) and masks.dtype == torch.bool
    assert masks.sum(1).tolist() == [random_masked_count(L, prob)] * rows == [L - int(L * (1 - prob))] * rows
    assert mask_statistics.distance(mask_statistics.numbers(masks, (1, L)), upstream(rows, L, prob)) < 5
    blocks = masks.clone()
    blocks[:, 1::2] = masks[:, : 2 * (L // 2) : 2]
    assert mask_statistics.distance(mask_statistics.numbers(blocks, (1, L)), upstream(rows, L, prob)) > 10


def test_every_set_is_equally_likely():
    masks = random_mask(SampleDraws(1, 1, list(range(20000))), 5, 0.4)
    sets = (masks * 2 ** torch.arange(5)).sum(1)
    counts = torch.bincount(sets, minlength=32)
    counts = counts[counts > 0].double()
    assert len(counts) == 10
    # standard deviations of a chi-square of 9 degrees of freedom
    assert abs(float(((counts - 2000) ** 2 / 2000).sum()) - 9) / 18**0.5 < 4


def test_a_row_does_not_depend_on_its_batch():
    batch = random_mask(SampleDraws(1, 7, [5, 6, 7, 8], clones=2), 60, 0.5)
    assert torch.equal(random_mask(SampleDraws(1, 7, [8, 5], clones=2), 60, 0.5), batch[[6, 7, 0, 1]])
    assert random_mask(SampleDraws(1, 7, [8, 5], device="meta"), 60, 0.5).device.type == "meta"


@pytest.mark.parametrize(
    ("L", "prob", "part"),
    [
        (60, 1.5, "mask_prob must lie between 0 and 1, got 1.5"),
        (60, -0.5, "mask_prob must lie between 0 and 1, got -0.5"),
        (60, 0.99, "mask_prob 0.99 leaves nothing of 60 positions: lower it"),
        (60, 0.0, "mask_prob 0.0 masks none of 60 positions: raise it"),
        (1, 0.5, "leaves nothing of 1 positions"),
    ],
)
def test_settings_that_cannot_work(L, prob, part):
    with pytest.raises(UserError, match=part):
        random_mask(SampleDraws(1, 1, [1]), L, prob)
