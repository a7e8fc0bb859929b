"""Triton side of ``masked_smooth_l1``.

Forward: each program takes BLOCK_M rows of BLOCK_C channels of both inputs into registers, and leaves a partial loss
and, per channel, the mean and the sum of squared deviations of either side. A second, small kernel merges the partials
in a fixed order (Chan et al., 1983), so that runs repeat bit by bit. Backward: the gradient is recomputed from the
inputs and multiplied by the upstream gradient, which stays on the device.

``save_grad`` writes the gradient in the forward instead and rescales it in the backward. Its backward reads one tensor
rather than two, its forward writes one more, it holds M x C elements in between and rounds twice. The benchmark times
both.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import device_guard

BLOCK_CONFIG = {"BLOCK_M": 128, "BLOCK_C": 64, "num_warps": 8}
MERGE_CONFIG = {"BLOCK_N": 32, "BLOCK_C": 64, "num_warps": 4}


@triton.jit
def _row_offsets(rows_ptr, m, M, inner, stride_outer, stride_inner, HAS_ROWS: tl.constexpr, FLAT: tl.constexpr):
    """Element offsets of the rows that the (BLOCK_M,) int64 numbers m name, for rows laid out as (outer, inner)."""
    row = m
    if HAS_ROWS:
        row = tl.load(rows_ptr + m, mask=m < M, other=0)
    if FLAT:
        return row * stride_inner
    else:
        return (row // inner) * stride_outer + (row % inner) * stride_inner


@triton.jit
def _slope(d, beta, inverse_beta, SQUARED: tl.constexpr):
    """Derivative of one error term; NaN stays NaN. A product with 1 / beta: the division costs half the registers."""
    if SQUARED:
        return 2.0 * d
    else:
        sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, d))
        return tl.where(tl.abs(d) < beta, d * inverse_beta, sign)


@triton.jit
def _moments(x, valid, count):
    """Mean of each column of the fp32 tile x, what rounding left of it, and the sum of squared deviations.

    x is zero where not valid. Where the mean is many standard deviations, its last digits are the deviations of whole
    blocks from each other, which the merge needs.
    """
    mean = tl.sum(x, 0) / count
    centred = tl.where(valid, x - mean[None, :], 0.0)
    return mean, tl.sum(centred, 0) / count, tl.sum(centred * centred, 0)


@triton.jit(do_not_specialize=["M"])
def _masked_smooth_l1_fwd_kernel(
    pred_ptr, target_ptr, pred_rows_ptr, target_rows_ptr, loss_ptr, moments_ptr, slope_ptr,
    pred_inner, pred_stride_outer, pred_stride_inner, target_inner, target_stride_outer, target_stride_inner,
    M, C, beta, inverse_beta,
    SQUARED: tl.constexpr, HAS_PRED_ROWS: tl.constexpr, HAS_TARGET_ROWS: tl.constexpr, PRED_FLAT: tl.constexpr,
    TARGET_FLAT: tl.constexpr, SAVE_GRAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    m_block = tl.program_id(1)
    m = m_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = (m < M)[:, None] & (c < C)[None, :]
    pred_at = _row_offsets(
        pred_rows_ptr, m, M, pred_inner, pred_stride_outer, pred_stride_inner, HAS_PRED_ROWS, PRED_FLAT
    )
    target_at = _row_offsets(
        target_rows_ptr, m, M, target_inner, target_stride_outer, target_stride_inner, HAS_TARGET_ROWS, TARGET_FLAT
    )
    pred = tl.load(pred_ptr + pred_at[:, None] + c[None, :], mask=valid, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + target_at[:, None] + c[None, :], mask=valid, other=0.0).to(tl.float32)
    d = pred - target
    if SQUARED:
        terms = d * d
    else:
        size = tl.abs(d)
        terms = tl.where(size < beta, 0.5 * d * d * inverse_beta, size - 0.5 * beta)
    # rows and channels beyond the end are zero on both sides and add nothing
    tl.store(loss_ptr + m_block * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(terms, 0), 0))
    if SAVE_GRAD:
        tl.store(slope_ptr + m[:, None] * C + c[None, :], _slope(d, beta, inverse_beta, SQUARED), mask=valid)
    count = tl.minimum(M - m_block * BLOCK_M, BLOCK_M).to(tl.float32)
    # (6, blocks, C): mean, what rounding left of it, and m2; of the predictions, then of the targets
    plane = tl.num_programs(1) * C
    at = moments_ptr + m_block * C + c
    mean, left, m2 = _moments(pred, valid, count)
    tl.store(at, mean, mask=c < C)
    tl.store(at + plane, left, mask=c < C)
    tl.store(at + 2 * plane, m2, mask=c < C)
    mean, left, m2 = _moments(target, valid, count)
    tl.store(at + 3 * plane, mean, mask=c < C)
    tl.store(at + 4 * plane, left, mask=c < C)
    tl.store(at + 5 * plane, m2, mask=c < C)


@triton.jit(do_not_specialize=["M", "blocks", "partials"])
def _merge_kernel(
    partial_loss_ptr, partial_moments_ptr, loss_ptr, moments_ptr, M, C, blocks, partials, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merge the moments of all row blocks for BLOCK_C channels of one side; the first program also sums the loss."""
    side = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    plane = blocks * C
    partials_at = partial_moments_ptr + 3 * side * plane
    # everything is a deviation from the first block's mean until the end
    pivot = tl.load(partials_at + c, mask=c < C, other=0.0)
    mean = tl.zeros((1, BLOCK_C), tl.float32)
    m2 = tl.zeros((1, BLOCK_C), tl.float32)
    start = 0
    while start < blocks:
        n = start + tl.arange(0, BLOCK_N)[:, None]
        inside = (n < blocks) & (c < C)
        at = partials_at + n * C + c
        shift = tl.load(at, mask=inside, other=0.0) - pivot + tl.load(at + plane, mask=inside, other=0.0)
        shift = tl.where(inside, shift - mean, 0.0)
        block_m2 = tl.load(at + 2 * plane, mask=inside, other=0.0)
        rows = tl.minimum(tl.maximum(M - n * BLOCK_M, 0), BLOCK_M).to(tl.float32)
        before = (start * BLOCK_M).to(tl.float32)
        here = tl.minimum(M - start * BLOCK_M, BLOCK_N * BLOCK_M).to(tl.float32)
        delta = tl.sum(shift * rows, 0, keep_dims=True) / here
        spread = tl.where(inside, shift - delta, 0.0)
        weight = here / (before + here)
        m2 += tl.sum(block_m2 + spread * spread * rows, 0, keep_dims=True) + delta * delta * (before * weight)
        mean += delta * weight
        start += BLOCK_N
    tl.store(moments_ptr + 2 * side * C + c, pivot + mean, mask=c < C)
    tl.store(moments_ptr + (2 * side + 1) * C + c, m2, mask=c < C)
    if (tl.program_id(0) == 0) & (side == 0):
        total = tl.zeros((BLOCK_N * BLOCK_C,), tl.float32)
        first = 0
        while first < partials:
            i = first + tl.arange(0, BLOCK_N * BLOCK_C)
            total += tl.load(partial_loss_ptr + i, mask=i < partials, other=0.0)
            first += BLOCK_N * BLOCK_C
        tl.store(loss_ptr, tl.sum(total, 0) * scale)


@triton.jit(do_not_specialize=["M"])
def _masked_smooth_l1_bwd_kernel(
    pred_ptr, target_ptr, pred_rows_ptr, target_rows_ptr, slope_ptr, upstream_ptr, grad_ptr,
    pred_inner, pred_stride_outer, pred_stride_inner, target_inner, target_stride_outer, target_stride_inner,
    M, C, beta, inverse_beta, scale,
    SQUARED: tl.constexpr, HAS_PRED_ROWS: tl.constexpr, HAS_TARGET_ROWS: tl.constexpr, PRED_FLAT: tl.constexpr,
    TARGET_FLAT: tl.constexpr, SAVE_GRAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient rows of pred, into a contiguous tensor that is zero where no row was named."""
    m = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = (m < M)[:, None] & (c < C)[None, :]
    if SAVE_GRAD:
        slope = tl.load(slope_ptr + m[:, None] * C + c[None, :], mask=valid, other=0.0).to(tl.float32)
    else:
        pred_at = _row_offsets(
            pred_rows_ptr, m, M, pred_inner, pred_stride_outer, pred_stride_inner, HAS_PRED_ROWS, PRED_FLAT
        )
        target_at = _row_offsets(
            target_rows_ptr, m, M, target_inner, target_stride_outer, target_stride_inner, HAS_TARGET_ROWS, TARGET_FLAT
        )
        pred = tl.load(pred_ptr + pred_at[:, None] + c[None, :], mask=valid, other=0.0).to(tl.float32)
        target = tl.load(target_ptr + target_at[:, None] + c[None, :], mask=valid, other=0.0).to(tl.float32)
        slope = _slope(pred - target, beta, inverse_beta, SQUARED)
    factor = tl.load(upstream_ptr).to(tl.float32) * scale
    grad_at = _row_offsets(pred_rows_ptr, m, M, 1, C, C, HAS_PRED_ROWS, True)
    tl.store(grad_ptr + grad_at[:, None] + c[None, :], slope * factor, mask=valid)


def _row_layout(x: Tensor) -> tuple[Tensor, int, int, int]:
    """A tensor (..., C) as rows (outer, inner): the tensor, the size of inner, the strides of outer and of inner.

    Up to two row dimensions are addressed in place; more are viewed as one where strides allow it and copied if not.
    """
    if x.dim() > 3:
        x = x.reshape(-1, x.size(-1))
    if x.dim() == 2:
        return x, max(1, x.size(0)), 0, x.stride(0)
    return x, max(1, x.size(1)), x.stride(0), x.stride(1)


def _is_flat(layout: tuple[Tensor, int, int, int]) -> bool:
    x, inner, stride_outer, stride_inner = layout
    return x.dim() == 2 or stride_outer == inner * stride_inner


class _MaskedSmoothL1(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, targets, pred_rows, target_rows, beta, scale, save_grad):
        C = pred.size(-1)
        M = pred_rows.numel() if pred_rows is not None else pred.shape[:-1].numel()
        save_grad = save_grad and ctx.needs_input_grad[0]
        new = {"dtype": torch.float32, "device": pred.device}
        ctx.options = (M, C, beta, scale, save_grad)
        if M * C == 0:
            ctx.save_for_backward(pred, targets, pred_rows, target_rows, None)
            moments = torch.zeros((4, C), **new)
            ctx.mark_non_differentiable(moments)
            return torch.zeros((), **new), moments
        slope = torch.empty((M, C), dtype=pred.dtype, device=pred.device) if save_grad else None
        grid = (triton.cdiv(C, BLOCK_CONFIG["BLOCK_C"]), triton.cdiv(M, BLOCK_CONFIG["BLOCK_M"]))
        partial_loss = torch.empty(grid[1] * grid[0], **new)
        partial_moments = torch.empty((6, grid[1], C), **new)
        loss = torch.empty((), **new)
        moments = torch.empty((4, C), **new)
        layouts = _row_layout(pred), _row_layout(targets)
        _masked_smooth_l1_fwd_kernel[grid](
            layouts[0][0], layouts[1][0], pred_rows, target_rows, partial_loss, partial_moments, slope,
            *layouts[0][1:], *layouts[1][1:], M, C, beta, _inverse(beta),
            **_switches(layouts, pred_rows, target_rows, beta, save_grad),
        )  # fmt: skip
        _merge_kernel[(triton.cdiv(C, MERGE_CONFIG["BLOCK_C"]), 2)](
            partial_loss, partial_moments, loss, moments, M, C, grid[1], grid[0] * grid[1], scale,
            BLOCK_M=BLOCK_CONFIG["BLOCK_M"], **MERGE_CONFIG,
        )  # fmt: skip
        ctx.save_for_backward(pred, targets, pred_rows, target_rows, slope)
        ctx.mark_non_differentiable(moments)
        return loss, moments

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _moments):
        pred, targets, pred_rows, target_rows, slope = ctx.saved_tensors
        M, C, beta, scale, save_grad = ctx.options
        fill = torch.zeros if pred_rows is not None or M * C == 0 else torch.empty
        grad = fill(pred.shape, dtype=pred.dtype, device=pred.device)
        if M * C > 0:
            layouts = _row_layout(pred), _row_layout(targets)
            grid = (triton.cdiv(C, BLOCK_CONFIG["BLOCK_C"]), triton.cdiv(M, BLOCK_CONFIG["BLOCK_M"]))
            with device_guard(pred):
                _masked_smooth_l1_bwd_kernel[grid](
                    layouts[0][0], layouts[1][0], pred_rows, target_rows, slope, upstream, grad,
                    *layouts[0][1:], *layouts[1][1:], M, C, beta, _inverse(beta), scale,
                    **_switches(layouts, pred_rows, target_rows, beta, save_grad),
                )  # fmt: skip
        return grad, None, None, None, None, None, None


def _inverse(beta: float) -> float:
    return 1.0 / beta if beta else 0.0


def _switches(layouts, pred_rows, target_rows, beta, save_grad) -> dict[str, int]:
    return {
        "SQUARED": beta == 0,
        "HAS_PRED_ROWS": pred_rows is not None,
        "HAS_TARGET_ROWS": target_rows is not None,
        "PRED_FLAT": _is_flat(layouts[0]),
        "TARGET_FLAT": _is_flat(layouts[1]),
        "SAVE_GRAD": save_grad,
        **BLOCK_CONFIG,
    }


def masked_smooth_l1_triton(
    pred: Tensor,
    targets: Tensor,
    *,
    pred_rows: Tensor | None,
    target_rows: Tensor | None,
    beta: float,
    scale: float,
    save_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``masked_smooth_l1`` on checked input; returns what ``reference.masked_smooth_l1`` returns."""
    with device_guard(pred):
        loss, moments = _MaskedSmoothL1.apply(pred, targets.detach(), pred_rows, target_rows, beta, scale, save_grad)
    return (loss, *moments.unbind(0))
