"""The regression's statistics, on one process and merged over two."""

import pytest
import torch
import torch.multiprocessing as mp

from d2v_plugin.method.regression import loss_scale, over_all_ranks, regression_loss


def test_scale():
    assert loss_scale(None, 64) == 0.125
    assert loss_scale(0.5, 64) == 0.5


def test_statistics_are_those_of_the_rows():
    pred, targets = torch.randn(50, 8) * 2 + 3, torch.randn(50, 8)
    out = regression_loss(pred, targets, beta=0.0, scale=0.5)
    torch.testing.assert_close(out.loss, 0.5 * (pred - targets).square().sum())
    torch.testing.assert_close(out.pred_std, (pred.var(0) + 1e-6).sqrt().mean())
    torch.testing.assert_close(out.target_std, (targets.var(0) + 1e-6).sqrt().mean())
    finite, target_std, pred_std = over_all_ranks(out)
    assert finite is True
    assert (target_std, pred_std) == (pytest.approx(float(out.target_std)), pytest.approx(float(out.pred_std)))


def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(70, 8, generator=generator) * 2 + 30, torch.randn(70, 8, generator=generator) - 1


def rank_main(rank, address, results, poison):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    pred, targets = (x[:20] if rank == 0 else x[20:] for x in rows())
    if poison and rank == 1:
        pred = pred * float("nan")
    results.put(over_all_ranks(regression_loss(pred, targets, beta=0.0, scale=1.0)))
    torch.distributed.destroy_process_group()


def on_two_ranks(tmp_path, poison):
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(rank_main, (f"file://{tmp_path}/rendezvous", results, poison), nprocs=2)
    return [results.get() for _ in range(2)]


def test_two_ranks_decide_alike_on_all_rows(tmp_path):
    a, b = on_two_ranks(tmp_path, poison=False)
    whole = regression_loss(*rows(), beta=0.0, scale=1.0)
    assert a == b
    assert a == (True, pytest.approx(float(whole.target_std)), pytest.approx(float(whole.pred_std)))


def test_one_rank_that_diverges_is_everybodys(tmp_path):
    assert [finite for finite, _, _ in on_two_ranks(tmp_path, poison=True)] == [False, False]
