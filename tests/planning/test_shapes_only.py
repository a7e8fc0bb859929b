"""A step for its shapes alone holds as much as the same step computed, and what is held is counted."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2v_plugin.planning import shapes_only
from d2v_plugin.planning.shapes_only import ShapesOnly, fused_attention


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    monkeypatch.setattr(shapes_only, "LARGE", 1000)


class Net(nn.Module):
    """A convolution, attention, dropout, a mask drawn from random numbers, in-place operations and views."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 64, 10, 5)
        self.norm = nn.LayerNorm(64)
        self.qkv = nn.Linear(64, 192)
        self.out = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, 64))

    def forward(self, x):
        x = self.norm(self.conv(x[:, None]).transpose(1, 2))
        mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.5
        x = x.masked_fill(mask[..., None], 0.0)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 32).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(x).mul_(0.5)
        return x[mask].float().square().sum()


def peak(x, computed, monkeypatch):
    """(bytes held at most by a step on ``x``, bytes that are left of it)"""
    with monkeypatch.context() as patch:
        if computed:
            patch.setattr(shapes_only, "LARGE", 2**62)
        mode = ShapesOnly()
        with fused_attention(), mode:
            model = Net()
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            gc.collect()
            before = mode.restart()
            model(x).backward()
            return mode.peak - before, mode.live - before


@pytest.mark.parametrize("rows", [1, 4])
def test_holds_what_the_computed_step_holds(rows, monkeypatch):
    x = torch.randn(rows, 4000)
    shapes, computed = peak(x, False, monkeypatch), peak(x, True, monkeypatch)
    assert shapes == computed
    assert shapes[0] > rows * 800 * 64 * 4 * 10 and shapes[1] == 0


def test_counts_each_storage_once_while_it_lives():
    mode = ShapesOnly()
    with mode:
        a = torch.zeros(100, 1000)
        assert mode.live == 400_000
        view = a[:50].view(-1)
        a.add_(1.0)
        assert mode.live == 400_000
        b = a + a
        half = b.to(torch.float16)
        assert mode.live == 400_000 + 400_000 + 200_000 and half.dtype == torch.float16
        del a, b
        assert mode.live == 400_000 + 200_000
        del view, half
    assert mode.live == 0 and mode.peak == 1_000_000


def test_what_decides_shapes_is_computed():
    """Masks and indices of a size that is below the large ones, and whatever is no floating number."""
    mode = ShapesOnly()
    with mode:
        drawn = torch.rand(500, generator=torch.Generator().manual_seed(0))
        index = torch.arange(5000)
        rows = torch.zeros(5000, 8)[index % 2 == 0]
    assert torch.equal(drawn, torch.rand(500, generator=torch.Generator().manual_seed(0)))
    assert rows.shape == (2500, 8) and torch.equal(index, torch.arange(5000))


def test_attention_keeps_no_weights_of_pairs():
    mode = ShapesOnly()
    q = torch.zeros(1, 2, 500, 32, requires_grad=True)
    with fused_attention(), mode:
        out = F.scaled_dot_product_attention(q, q, q, dropout_p=0.1)
        held = mode.live
        out.sum().backward()
    assert held < 2 * out.nbytes and q.grad.shape == q.shape
    assert mode.peak < 500 * 500 * 4 * 2
    # outside it is torch's own again
    assert torch.isfinite(F.scaled_dot_product_attention(q, q, q)).all()
