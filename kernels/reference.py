"""Eager twins of the kernels: what they compute, the path on CPU, and the oracle of their tests.

Free of Triton. Statistics and sums are fp32 whatever the inputs are; fp64 inputs stay fp64, so that the same code
serves as a higher-precision oracle. Inputs are taken as valid: the public functions check them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def valid_frames(lengths: Tensor, frames: int) -> Tensor:
    """(B,) lengths to (B, T, 1) bool, True for the first lengths[b] frames."""
    return (torch.arange(frames, device=lengths.device) < lengths[:, None]).unsqueeze(-1)


def instance_norm(x: Tensor, lengths: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise (B, T, C) over time, per sample and channel, with the biased variance.

    With lengths the statistics see only the first lengths[b] frames, and the frames after them come out as zeros.
    """
    x = _widen(x)
    if lengths is None:
        return F.instance_norm(x.transpose(1, 2), eps=eps).transpose(1, 2)
    valid = valid_frames(lengths, x.size(1))
    # clamp: an empty sample has no statistics, and none of its frames is used
    count = lengths.clamp(1, x.size(1)).to(x.dtype)[:, None, None]
    # where, not a product: padding may hold NaN
    mean = torch.where(valid, x, 0.0).sum(1, keepdim=True) / count
    centred = torch.where(valid, x - mean, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * torch.rsqrt(variance + eps)


def layer_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise the last dimension, without weights."""
    return F.layer_norm(_widen(x), x.shape[-1:], eps=eps)


def _normalise(x: Tensor, kind: str, lengths: Tensor | None, eps: float) -> Tensor:
    if kind == "instance":
        return instance_norm(x, lengths, eps)
    if kind == "layer":
        return layer_norm(x, eps)
    return _widen(x)


@torch.no_grad()
def topk_instance_norm_mean(
    layers: Sequence[Tensor],
    *,
    layer_norm: str = "instance",
    final_norm: str = "none",
    rows: Tensor | None = None,
    lengths: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Eager twin of ``d2v_kernels.topk_instance_norm_mean``; its docstring says what the arguments mean."""
    # one running sum: a list of K normalised layers would hold K times the memory
    total = _normalise(layers[0], layer_norm, lengths, eps)
    for x in layers[1:]:
        total = total + _normalise(x, layer_norm, lengths, eps)
    mean = _normalise(total / len(layers), final_norm, lengths, eps)
    if lengths is not None:
        mean = torch.where(valid_frames(lengths, mean.size(1)), mean, 0.0)
    mean = mean.contiguous()
    return mean if rows is None else mean.view(-1, mean.size(-1)).index_select(0, rows)


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of each column of (M, C); zeros when M is 0."""
    if x.size(0) == 0:
        return x.new_zeros(x.size(1)), x.new_zeros(x.size(1))
    mean = x.mean(0)
    return mean, (x - mean).square().sum(0)


def masked_smooth_l1(
    pred: Tensor,
    targets: Tensor,
    *,
    pred_rows: Tensor | None = None,
    target_rows: Tensor | None = None,
    beta: float = 0.0,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Eager twin of ``d2v_kernels.masked_smooth_l1``.

    Returns:
        loss (0-d, with gradient to pred), then the mean and the sum of squared deviations per channel of the
        predictions, then those of the targets, each (C,).
    """
    pred = _widen(pred.reshape(-1, pred.size(-1)))
    targets = _widen(targets.detach().reshape(-1, targets.size(-1)))
    if pred_rows is not None:
        pred = pred.index_select(0, pred_rows)
    if target_rows is not None:
        targets = targets.index_select(0, target_rows)
    # PyTorch's smooth L1 with beta=0 is the absolute error; data2vec's loss_beta=0 is the squared error
    if beta == 0:
        loss = F.mse_loss(pred, targets, reduction="sum") * scale
    else:
        loss = F.smooth_l1_loss(pred, targets, reduction="sum", beta=beta) * scale
    with torch.no_grad():
        return (loss, *channel_statistics(pred), *channel_statistics(targets))
