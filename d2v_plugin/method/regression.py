"""Masked regression of the student on the teacher's targets."""

import math
from dataclasses import dataclass

import torch
from d2v_kernels import masked_smooth_l1


def loss_scale(configured, channels):
    """``1 / sqrt(C)`` unless a scale is configured, as both papers' code does."""
    return 1 / math.sqrt(channels) if configured is None else configured


@dataclass
class Regression:
    """0-d fp32 ``loss`` with its gradient, and the statistics of both sides over rows (``RegressionStats``)."""

    loss: torch.Tensor
    stats: object

    @property
    def target_std(self):
        """Mean over channels of the std over rows; upstream calls it ``target_var``."""
        return mean_std(self.stats.target_m2, self.stats.count)

    @property
    def pred_std(self):
        """The same of the predictions; upstream's ``pred_var``."""
        return mean_std(self.stats.pred_m2, self.stats.count)


def regression_loss(pred, targets, *, beta, scale, target_rows=None):
    """Sum of the elementwise loss over masked frames and channels, and how much both sides vary.

    Args:
        pred: (M, C) student predictions at masked frames.
        targets: (M, C) fp32 teacher targets of the same frames; with ``target_rows`` any (..., C).
        target_rows: (M,) int64, the row of ``targets`` for each prediction; clones of a sample name the same ones.
        beta: 0 means squared error (PyTorch's smooth L1 with beta 0 would be absolute error).
        scale: factor on the loss.
    Returns:
        ``Regression``.
    """
    out = masked_smooth_l1(pred, targets, target_rows=target_rows, beta=beta, scale=scale)
    return Regression(out.loss, out.stats)


def mean_std(m2, count):
    """Mean over channels of ``sqrt(m2 / (count - 1) + 1e-6)``; ``m2`` are sums of squared deviations, (C,)."""
    return torch.sqrt(m2 / max(count - 1, 1) + 1e-6).mean()


def over_all_ranks(regression):
    """``(finite, target_std, pred_std)`` of all ranks together, as Python numbers: every rank gets the same.

    One small all-reduce and one host read, for the collapse watch: if ranks decided for themselves, one
    would stop while the others wait for it.
    """
    stats, device = regression.stats, regression.loss.device
    count = torch.full((1,), stats.count, dtype=torch.float64, device=device)
    bad = (~regression.loss.detach().isfinite()).double().reshape(1)
    sums = [count, bad]
    for mean, m2 in ((stats.target_mean, stats.target_m2), (stats.pred_mean, stats.pred_m2)):
        mean, m2 = mean.double(), m2.double()
        sums += [count * mean, m2 + count * mean.square()]
    packed = torch.cat(sums)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(packed)
    packed = packed.cpu()
    count, bad = packed[:2].tolist()
    target_sum, target_square, pred_sum, pred_square = packed[2:].chunk(4)
    stds = [
        float(mean_std((square - total.square() / max(count, 1)).clamp(min=0), count))
        for total, square in ((target_sum, target_square), (pred_sum, pred_square))
    ]
    return bad == 0, *stds
