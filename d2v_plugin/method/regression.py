"""Masked regression of the student on the teacher's targets."""

import math

import torch
from d2v_kernels import masked_smooth_l1


def loss_scale(configured, channels):
    """``1 / sqrt(C)`` unless a scale is configured, as both papers' code does."""
    return 1 / math.sqrt(channels) if configured is None else configured


def regression_loss(pred, targets, *, beta, scale):
    """Sum of the elementwise loss over masked frames and channels, and how much both sides vary.

    Args:
        pred: (M, C) student predictions at masked frames.
        targets: (M, C) fp32 teacher targets of the same frames.
        beta: 0 means squared error (PyTorch's smooth L1 with beta 0 would be absolute error).
        scale: factor on the loss.
    Returns:
        ``(loss, target_std, pred_std)``, 0-d fp32 tensors; the last two without gradient.
    """
    out = masked_smooth_l1(pred, targets, beta=beta, scale=scale)
    stats = out.stats
    return out.loss, _mean_std(stats.target_m2, stats.count), _mean_std(stats.pred_m2, stats.count)


def _mean_std(m2, count):
    """Mean over channels of the standard deviation over rows; upstream calls it ``target_var`` / ``pred_var``."""
    return torch.sqrt(m2 / max(count - 1, 1) + 1e-6).mean()
