"""The regression loss of data2vec with the channel statistics of its collapse watch, in one pass over both inputs.

    d = pred[pred_rows] - targets[target_rows]
    loss = scale * sum d^2                              beta = 0
    loss = scale * sum (d^2 / (2 beta) if |d| < beta else |d| - beta / 2)

The Triton side is in ``masked_smooth_l1_triton.py``. Source: arXiv:2202.03555, section 3.3.
"""

from dataclasses import dataclass

from torch import Tensor

from . import reference
from .checks import check_float, check_rows
from .dispatch import uses_triton


@dataclass
class RegressionStats:
    """Per-channel statistics of one loss call, in the form in which ranks and updates merge (Chan et al., 1983).

    count is the number of rows M; means and sums of squared deviations are (C,), fp32, without gradient, and zeros
    when count is 0.
    """

    count: int
    pred_mean: Tensor
    pred_m2: Tensor
    target_mean: Tensor
    target_m2: Tensor


@dataclass
class RegressionOutput:
    """loss is 0-d fp32 with gradient to pred."""

    loss: Tensor
    stats: RegressionStats


def masked_smooth_l1(
    pred: Tensor,
    targets: Tensor,
    *,
    pred_rows: Tensor | None = None,
    target_rows: Tensor | None = None,
    beta: float = 0.0,
    scale: float = 1.0,
) -> RegressionOutput:
    """Summed smooth L1 (or squared) error of M rows, with the mean and variance of both sides per channel.

    Args:
        pred: (M, C), or with pred_rows any (..., C) seen as rows; fp16/bf16/fp32, channel stride 1.
        targets: the same, with target_rows; its dtype may differ. Receives no gradient.
        pred_rows: (M,) int64, which rows of pred take part, each at most once: gradients of a row named twice would
            overwrite each other. Rows not named get zero gradient. Indices out of range are undefined behaviour.
        target_rows: (M,) int64, the target of each row; rows may repeat, so M masks of one sample share its targets.
        beta: where the quadratic part ends. 0 means squared error, not halved, as in fairseq (PyTorch's smooth L1
            with beta=0 would be the absolute error).
        scale: factor on the sum, a host number.
    Returns:
        RegressionOutput. Nothing is read on the host, sums do not depend on scheduling, and NaN propagates. With
        M = 0 the loss is 0 and its gradient zeros.
    Raises:
        ValueError: shapes that do not fit, strided channels, negative beta.
    """
    _check(pred, targets, pred_rows, target_rows, beta)
    options = {"pred_rows": pred_rows, "target_rows": target_rows, "beta": float(beta), "scale": float(scale)}
    if uses_triton(pred):
        from .masked_smooth_l1_triton import masked_smooth_l1_triton

        loss, *moments = masked_smooth_l1_triton(pred, targets, **options)
    else:
        loss, *moments = reference.masked_smooth_l1(pred, targets, **options)
    count = _row_count(pred, pred_rows)
    return RegressionOutput(loss=loss, stats=RegressionStats(count, *moments))


def _row_count(x: Tensor, rows: Tensor | None) -> int:
    return rows.numel() if rows is not None else x.shape[:-1].numel()


def _check(pred, targets, pred_rows, target_rows, beta) -> None:
    for name, x, rows in (("pred", pred, pred_rows), ("targets", targets, target_rows)):
        if x.dim() < 2:
            raise ValueError(f"{name} must be (..., C) with at least one row dimension, got {tuple(x.shape)}")
        check_float(name, x)
        if rows is not None:
            check_rows(f"{name.removesuffix('s')}_rows", rows, x.device)
    if pred.device != targets.device:
        raise ValueError(f"pred and targets must share a device, got {pred.device} and {targets.device}")
    if pred.size(-1) != targets.size(-1):
        raise ValueError(f"pred and targets must share C, got {pred.size(-1)} and {targets.size(-1)}")
    counts = _row_count(pred, pred_rows), _row_count(targets, target_rows)
    if counts[0] != counts[1]:
        raise ValueError(f"pred and targets must have as many rows, got {counts[0]} and {counts[1]}; "
                         "pass pred_rows and target_rows of one length")
    if not beta >= 0:
        raise ValueError(f"beta must be 0 (squared error) or above, got {beta}")
