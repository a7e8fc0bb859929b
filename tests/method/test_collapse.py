"""Collapse watch: what it measures, when it looks, when and how it stops a run."""

import pytest
import torch

from d2v_plugin.method.collapse import CollapseError, CollapseWatch, check_finite, spread


def test_rank_counts_directions():
    basis = torch.linalg.qr(torch.randn(64, 64)).Q
    for rank in (1, 4, 64):
        coefficients = torch.linalg.qr(torch.randn(2000, rank) - torch.randn(2000, rank).mean(0)).Q * 40
        std, measured = spread(coefficients @ basis[:rank], max_rows=2000)
        assert float(measured) == pytest.approx(rank, rel=0.05)
        assert std > 0


def test_a_constant_has_no_spread_and_rank_one_at_most():
    std, rank = spread(torch.ones(5, 300, 8))
    assert float(std) == 0
    assert float(rank) <= 1.001


def test_variance_can_look_healthy_while_rank_has_collapsed():
    """Every channel varies, but all in step: the case that variance alone missed."""
    line = torch.randn(2, 300, 1) * torch.ones(32)
    std, rank = spread(line)
    assert float(std) > 0.8
    assert float(rank) < 1.1


def test_looks_once_per_interval():
    watch = CollapseWatch(0.1, 0.01, interval=10)
    looked = [u for u in range(31) for _ in range(2) if watch.due(u)]  # two micro-batches an update
    assert looked == [0, 10, 20, 30]


@pytest.mark.parametrize("name, floor", [("target_var", 0.1), ("pred_var", 0.01)])
def test_stops_below_the_floor_after_the_guard(name, floor):
    watch = CollapseWatch(0.1, 0.01, guard_updates=100, interval=1)
    healthy = {"target_var": 0.5, "pred_var": 0.5}
    low = {**healthy, name: floor * 0.9}
    watch.check(100, True, **low)
    watch.check(101, True, **healthy)
    with pytest.raises(CollapseError, match=rf"update 101.*{name}.*learning rate.*crash.pt"):
        watch.check(101, True, **low)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_stops_on_a_loss_that_is_not_finite_even_in_the_guard_period(loss):
    watch = CollapseWatch(0.1, 0.01)
    with pytest.raises(CollapseError, match="learning rate too high"):
        watch.check(0, False, target_var=1.0, pred_var=1.0)
    with pytest.raises(CollapseError):
        check_finite(3, torch.tensor(loss))
