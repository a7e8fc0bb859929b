"""Kept positions: there and back, rows of targets, gradients of clones."""

import pytest
import torch

from d2v_plugin.errors import UserError
from d2v_plugin.method.kept import Masked, gather_clones
from d2v_plugin.method.masking import SampleDraws


def masks(rows=6, T=10, count=6):
    return torch.rand(rows, T).argsort(1).argsort(1) < count


def test_kept_and_masked_are_in_order_and_complete():
    mask = masks()
    masked = Masked.of(mask)
    for row in range(6):
        assert torch.equal(masked.keep[row], (~mask[row]).nonzero().squeeze(1))
    assert torch.equal(masked.rows, mask.flatten().nonzero().squeeze(1))
    assert masked.share == pytest.approx(0.6)
    counted = Masked.of(mask.to(torch.uint8), count=6)
    assert torch.equal(counted.keep, masked.keep) and torch.equal(counted.rows, masked.rows)


def test_restore_undoes_gather():
    masked, x = Masked.of(masks()), torch.randn(6, 10, 3)
    full = masked.restore(masked.gather(x), torch.zeros(6, 10, 3))
    assert torch.equal(full, x.masked_fill(masked.mask.unsqueeze(-1), 0))


def test_clones_name_the_rows_of_their_sample():
    mask = masks()
    rows = Masked.of(mask).target_rows(clones=3)
    flat = torch.arange(2 * 10).view(2, 10).repeat_interleave(3, 0)
    assert torch.equal(rows, flat[mask])


def test_clones_are_gathered_and_their_gradients_summed():
    masked, x = Masked.of(masks()), torch.randn(2, 10, 3, requires_grad=True)
    out = gather_clones(x, masked, 3)
    repeated = x.detach().repeat_interleave(3, 0)
    assert torch.equal(out, masked.gather(repeated))
    out.sum().backward()
    expected = (~masked.mask).view(2, 3, 10).sum(1).float()
    assert torch.equal(x.grad, expected.unsqueeze(-1).expand_as(x))


def test_a_share_of_the_masked_can_be_kept():
    mask = masks(rows=200, T=10, count=6)
    masked = Masked.of(mask, kept_share=0.5, draws=SampleDraws(1, 2, list(range(200))))
    assert masked.keep.shape == (200, 4 + 3)
    at = mask.gather(1, masked.keep)
    assert not at[:, :4].any() and at[:, 4:].all()
    assert torch.equal(masked.rows, mask.flatten().nonzero().squeeze(1))
    # a function of the row's sample: alone it is the same
    alone = Masked.of(mask[7:8], kept_share=0.5, draws=SampleDraws(1, 2, [7]))
    assert torch.equal(alone.keep[0], masked.keep[7])
    # every position has its turn
    assert masked.keep[:, 4:].flatten().bincount(minlength=10).min() > 30


def test_rows_with_different_counts():
    mask = masks()
    mask[2] = masks(rows=1, count=3)[0]
    with pytest.raises(UserError, match="same number of masked positions"):
        Masked.of(mask)


@pytest.mark.parametrize("count", [0, 10])
def test_nothing_left_or_nothing_masked(count):
    with pytest.raises(UserError, match="the mask leaves"):
        Masked.of(masks(count=count))
