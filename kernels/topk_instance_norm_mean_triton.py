"""Triton side of ``topk_instance_norm_mean``: every layer is read from device memory once, the mean written once.

Time is not the contiguous axis. For T <= RESIDENT_FRAMES one program owns a (T, BLOCK_C) column of one sample: it takes
a layer into registers, finds mean and variance there, adds the normalised layer to a running fp32 sum, and has the
next layers under way meanwhile. Longer inputs take two kernels, statistics then sum; the second reads the layers
again, only at the frames that are asked for. Norms over channels cross those columns, so a row kernel does them: for
``final_norm="layer"`` it is a second pass, over the rows written and nothing else.

Layers arrive as separate tensors. Sixteen pointer arguments carry them: tuples of pointers need Triton 3.3 (torch 2.6
ships 3.2), and a table of pointers on the device would be a copy from the host in every step. More layers, or layers
of differing strides, take further launches that add to the output.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dispatch import device_guard

MAX_LAYERS = 16
RESIDENT_FRAMES = 1024


@triton.jit
def _pick(k, x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr, x8_ptr, x9_ptr, x10_ptr, x11_ptr, x12_ptr,
          x13_ptr, x14_ptr, x15_ptr):
    """Pointer number k. Selects, not branches: the pipeliner must be able to compute it a few turns ahead."""
    x_ptr = x0_ptr
    x_ptr = tl.where(k == 1, x1_ptr, x_ptr)
    x_ptr = tl.where(k == 2, x2_ptr, x_ptr)
    x_ptr = tl.where(k == 3, x3_ptr, x_ptr)
    x_ptr = tl.where(k == 4, x4_ptr, x_ptr)
    x_ptr = tl.where(k == 5, x5_ptr, x_ptr)
    x_ptr = tl.where(k == 6, x6_ptr, x_ptr)
    x_ptr = tl.where(k == 7, x7_ptr, x_ptr)
    x_ptr = tl.where(k == 8, x8_ptr, x_ptr)
    x_ptr = tl.where(k == 9, x9_ptr, x_ptr)
    x_ptr = tl.where(k == 10, x10_ptr, x_ptr)
    x_ptr = tl.where(k == 11, x11_ptr, x_ptr)
    x_ptr = tl.where(k == 12, x12_ptr, x_ptr)
    x_ptr = tl.where(k == 13, x13_ptr, x_ptr)
    x_ptr = tl.where(k == 14, x14_ptr, x_ptr)
    x_ptr = tl.where(k == 15, x15_ptr, x_ptr)
    return x_ptr


@triton.jit
def _frame_count(lengths_ptr, b, T, HAS_LENGTHS: tl.constexpr):
    """Frames of sample b that count: T, or its length held to [0, T]."""
    count = T
    if HAS_LENGTHS:
        count = tl.minimum(tl.maximum(tl.load(lengths_ptr + b), 0), T).to(tl.int32)
    return count


@triton.jit
def _first_frame(at, c, C, frames):
    """Channels c of a sample's first frame in fp32; zeros beyond C, and where no frame counts.

    A select, not ``(c < C) & (frames > 0)``: Triton's interpreter spreads a scalar comparison as integers, which its
    loads refuse as a mask from 3.9 on.
    """
    return tl.load(at, mask=c < tl.where(frames > 0, C, 0), other=0.0).to(tl.float32)


@triton.jit
def _normalise_columns(x, valid, count, eps):
    """Instance norm of an fp32 tile (BLOCK_T, BLOCK_C) over its first axis; zeros where not valid."""
    mean = tl.sum(x, 0) / count
    centred = tl.where(valid, x - mean[None, :], 0.0)
    # What rounding left in the mean is taken out again: with a mean of 1000 standard deviations it would be seen.
    left = tl.sum(centred, 0) / count
    variance = tl.sum(centred * centred, 0) / count - left * left
    # where, not maximum: NaN must stay
    rstd = tl.rsqrt(tl.where(variance < 0.0, 0.0, variance) + eps)
    return centred * rstd[None, :] - tl.where(valid, (left * rstd)[None, :], 0.0)


@triton.jit(do_not_specialize=["T"])
def _resident_fwd_kernel(
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr, x8_ptr, x9_ptr, x10_ptr, x11_ptr, x12_ptr,
    x13_ptr, x14_ptr, x15_ptr,
    out_ptr, inverse_ptr, lengths_ptr, stride_xb, stride_xt, T, C, share, eps,
    K: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ADD: tl.constexpr,
    FINAL_INSTANCE: tl.constexpr, EVEN_C: tl.constexpr, WIDE: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    t = tl.arange(0, BLOCK_T)[:, None]
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    frames = _frame_count(lengths_ptr, b, T, HAS_LENGTHS)
    count = tl.maximum(frames, 1).to(tl.float32)
    valid = t < frames
    if not EVEN_C:
        valid = valid & (c < C)
    # within a sample 32 bits nearly always do, and registers are what this kernel is short of
    offsets = (t.to(tl.int64) if WIDE else t) * stride_xt + c
    acc = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    # A real loop: unrolled, the addresses of all layers are live at once and spill. Its loads run STAGES - 1 layers
    # ahead through shared memory, so that memory keeps working while a layer is reduced.
    for k in tl.range(0, K, num_stages=STAGES):
        x_ptr = b * stride_xb + _pick(k, x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr, x8_ptr, x9_ptr,
                                      x10_ptr, x11_ptr, x12_ptr, x13_ptr, x14_ptr, x15_ptr)
        x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
        acc += _normalise_columns(x, valid, count, eps)
    acc *= share
    row = b * T + t
    written = t < T
    if HAS_ROWS:
        row = tl.load(inverse_ptr + row, mask=written, other=-1).to(tl.int64)
        written = row >= 0
    if not EVEN_C:
        written = written & (c < C)
    target = row * C + c
    if ADD:
        acc += tl.load(out_ptr + target, mask=written, other=0.0)
    if FINAL_INSTANCE:
        acc = _normalise_columns(acc, valid, count, eps)
    tl.store(out_ptr + target, acc, mask=written)


@triton.jit(do_not_specialize=["T"])
def _statistics_fwd_kernel(
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr, x8_ptr, x9_ptr, x10_ptr, x11_ptr, x12_ptr,
    x13_ptr, x14_ptr, x15_ptr,
    mean_ptr, rstd_ptr, lengths_ptr, stride_xb, stride_xt, T, C, eps,
    HAS_LENGTHS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / sqrt(variance + eps) of one channel block of one sample of layer program_id(2), as (K, B, C).

    The mean is a deviation from the first frame: both are small or exact where the mean is many standard deviations.
    """
    b = tl.program_id(1).to(tl.int64)
    k = tl.program_id(2)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    frames = _frame_count(lengths_ptr, b, T, HAS_LENGTHS)
    x_ptr = _pick(k, x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr, x8_ptr, x9_ptr, x10_ptr, x11_ptr,
                  x12_ptr, x13_ptr, x14_ptr, x15_ptr)
    x_ptr += b * stride_xb
    first = _first_frame(x_ptr + c, c, C, frames)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    m2 = tl.zeros((BLOCK_C,), tl.float32)
    start = 0
    # not range(): Triton's interpreter cannot take a run-time bound under recent numpy
    while start < frames:
        t = start + tl.arange(0, BLOCK_T)[:, None]
        valid = (t < frames) & (c < C)[None, :]
        x = tl.load(x_ptr + t.to(tl.int64) * stride_xt + c[None, :], mask=valid, other=0.0).to(tl.float32)
        x = tl.where(valid, x - first[None, :], 0.0)
        # two passes within the tile, then the tile joins what came before it (Chan et al.)
        count = tl.minimum(frames - start, BLOCK_T).to(tl.float32)
        tile_mean = tl.sum(x, 0) / count
        centred = tl.where(valid, x - tile_mean[None, :], 0.0)
        delta = tile_mean - mean
        weight = count / (start + count)
        m2 += tl.sum(centred * centred, 0) + delta * delta * (start * weight)
        mean += delta * weight
        start += BLOCK_T
    variance = m2 / tl.maximum(frames, 1).to(tl.float32)
    target = (k.to(tl.int64) * tl.num_programs(1) + b) * C + c
    tl.store(mean_ptr + target, mean, mask=c < C)
    tl.store(rstd_ptr + target, tl.rsqrt(variance + eps), mask=c < C)


@triton.jit(do_not_specialize=["B", "T"])
def _apply_fwd_kernel(
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr, x8_ptr, x9_ptr, x10_ptr, x11_ptr, x12_ptr,
    x13_ptr, x14_ptr, x15_ptr,
    out_ptr, mean_ptr, rstd_ptr, inverse_ptr, lengths_ptr, stride_xb, stride_xt, B, T, C, share,
    K: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ADD: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sum of the layers normalised with ready statistics, for one (BLOCK_T, BLOCK_C) tile of one sample."""
    b = tl.program_id(1).to(tl.int64)
    t = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    frames = _frame_count(lengths_ptr, b, T, HAS_LENGTHS)
    if HAS_ROWS:
        row = tl.load(inverse_ptr + b * T + t, mask=t < T, other=-1).to(tl.int64)
        written = (row >= 0) & (c < C)[None, :]
    else:
        row = b * T + t
        written = (t < T) & (c < C)[None, :]
    # frames that nobody asked for are not read
    valid = written & (t < frames)
    offsets = b * stride_xb + t.to(tl.int64) * stride_xt + c[None, :]
    acc = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for k in tl.range(0, K, num_stages=STAGES):
        x_ptr = _pick(k, x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr, x8_ptr, x9_ptr, x10_ptr,
                      x11_ptr, x12_ptr, x13_ptr, x14_ptr, x15_ptr)
        x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
        first = _first_frame(x_ptr + b * stride_xb + c, c, C, frames)
        at = (b + k * B) * C + c
        mean = tl.load(mean_ptr + at, mask=c < C, other=0.0)
        rstd = tl.load(rstd_ptr + at, mask=c < C, other=0.0)
        acc += tl.where(valid, (x - first[None, :]) - mean[None, :], 0.0) * rstd[None, :]
    acc *= share
    target = row * C + c[None, :]
    if ADD:
        acc += tl.load(out_ptr + target, mask=written, other=0.0)
    tl.store(out_ptr + target, acc, mask=written)


@triton.jit
def _normalise_row(x, valid, C, eps):
    """Layer norm of fp32 rows (BLOCK_R, BLOCK_C) over their C channels; zeros where not valid."""
    mean = tl.sum(x, 1) / C
    centred = tl.where(valid, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / C
    return centred * tl.rsqrt(variance + eps)[:, None]


@triton.jit(do_not_specialize=["R", "T"])
def _rows_fwd_kernel(
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr, x8_ptr, x9_ptr, x10_ptr, x11_ptr, x12_ptr,
    x13_ptr, x14_ptr, x15_ptr,
    out_ptr, rows_ptr, lengths_ptr, stride_xb, stride_xt, R, T, C, share, eps,
    K: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_LENGTHS: tl.constexpr, ADD: tl.constexpr, LAYER_NORM: tl.constexpr,
    FINAL_LAYER: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Mean of K layers for BLOCK_R of the R output rows, all channels at once; norms over channels before or after."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.arange(0, BLOCK_C)[None, :]
    frame = r
    if HAS_ROWS:
        frame = tl.load(rows_ptr + r, mask=r < R, other=0)
    b = frame // T
    t = frame % T
    written = (r < R)[:, None] & (c < C)
    valid = written
    if HAS_LENGTHS:
        valid = valid & (t < tl.load(lengths_ptr + b, mask=r < R, other=0))[:, None]
    offsets = (b * stride_xb + t * stride_xt)[:, None] + c
    acc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for k in tl.range(0, K, num_stages=STAGES):
        x_ptr = _pick(k, x0_ptr, x1_ptr, x2_ptr, x3_ptr, x4_ptr, x5_ptr, x6_ptr, x7_ptr, x8_ptr, x9_ptr, x10_ptr,
                      x11_ptr, x12_ptr, x13_ptr, x14_ptr, x15_ptr)
        x = tl.load(x_ptr + offsets, mask=valid, other=0.0).to(tl.float32)
        if LAYER_NORM:
            x = _normalise_row(x, valid, C, eps)
        acc += x
    acc *= share
    target = r[:, None] * C + c
    if ADD:
        acc += tl.load(out_ptr + target, mask=written, other=0.0)
    if FINAL_LAYER:
        acc = _normalise_row(acc, valid, C, eps)
    tl.store(out_ptr + target, acc, mask=written)


def resident_config(layers: int, frames: int, channels: int, itemsize: int) -> dict[str, int]:
    """Tile of the resident kernel: 32 elements a thread, which is what fits in registers beside the running sum.

    The layers under way take 66 kB of shared memory, so that cards with 100 kB can run it.
    """
    block_t = max(16, triton.next_power_of_2(frames))
    elements = 16384 if block_t > 256 else 8192
    block_c = min(128, elements // block_t)
    num_warps = max(4, block_t * block_c // 1024)
    stages = 3 if itemsize == 2 else 2
    if layers == 1:
        # without a loop ptxas aims at two programs a multiprocessor, and half the registers
        block_c //= 2
    if channels % block_c:
        # masks over channels take registers, and odd rows are too unaligned to run ahead in 16-byte copies
        block_c //= 2
        stages = 1
    return {"BLOCK_T": block_t, "BLOCK_C": block_c, "num_warps": num_warps, "STAGES": stages}


STATISTICS_CONFIG = {"BLOCK_T": 128, "BLOCK_C": 64, "num_warps": 8}
APPLY_CONFIG = {"BLOCK_T": 32, "BLOCK_C": 128, "num_warps": 4, "STAGES": 3}


def rows_config(channels: int) -> dict[str, int]:
    """Tile of the row kernel: whole rows, 16 elements a thread."""
    block_c = max(32, triton.next_power_of_2(channels))
    block_r = max(1, 2048 // block_c)
    num_warps = min(16, max(4, block_r * block_c // 512))
    return {"BLOCK_R": block_r, "BLOCK_C": block_c, "num_warps": num_warps, "STAGES": 3}


def _launches(layers: list[Tensor]) -> list[list[Tensor]]:
    """Layers in groups of one launch each: equal strides, at most MAX_LAYERS."""
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for x in layers:
        groups.setdefault(x.stride()[:2], []).append(x)
    return [g[i : i + MAX_LAYERS] for g in groups.values() for i in range(0, len(g), MAX_LAYERS)]


def _pointers(group: list[Tensor]) -> list[Tensor]:
    # unused arguments repeat the first layer, so that their type and alignment add no compilations
    return group + group[:1] * (MAX_LAYERS - len(group))


def topk_instance_norm_mean_triton(
    layers: list[Tensor], *, layer_norm: str, final_norm: str, rows: Tensor | None, lengths: Tensor | None, eps: float
) -> Tensor:
    """``topk_instance_norm_mean`` on checked input; see there."""
    layers = [x.detach() for x in layers]
    with device_guard(layers[0]):
        return _forward(layers, layer_norm, final_norm, rows, lengths, eps)


def _forward(layers, layer_norm, final_norm, rows, lengths, eps) -> Tensor:
    T, C = layers[0].shape[1:]
    in_one_pass = layer_norm == "instance" and T <= RESIDENT_FRAMES and len(_launches(layers)) == 1
    if final_norm == "instance" and not in_one_pass:
        # the statistics of the mean need all of its frames: they are written, then read as a single layer
        mean = _forward(layers, layer_norm, "none", None, lengths, eps)
        return _forward([mean], "instance", "none", rows, lengths, eps)
    out_rows = layers[0].shape[:2].numel() if rows is None else rows.numel()
    shape = layers[0].shape if rows is None else (out_rows, C)
    out = torch.empty(shape, dtype=torch.float32, device=layers[0].device)
    if out.numel() == 0:
        return out
    if layer_norm != "instance":
        _launch_rows(layers, out, rows, lengths, eps, layer_norm == "layer", final_norm == "layer")
        return out
    inverse = None if rows is None else _inverse(rows, layers[0].shape[:2].numel())
    if T <= RESIDENT_FRAMES:
        _launch_resident(layers, out, inverse, lengths, eps, final_norm == "instance")
    else:
        _launch_long(layers, out, inverse, lengths, eps)
    if final_norm == "layer":
        _launch_rows([out.view(1, out_rows, C)], out, None, None, eps, False, True)
    return out


def _inverse(rows: Tensor, frames: int) -> Tensor:
    """(frames,) int32: which output row a frame goes to, -1 for none. Two small launches and no host read."""
    inverse = torch.full((frames,), -1, dtype=torch.int32, device=rows.device)
    return inverse.scatter_(0, rows, torch.arange(rows.numel(), dtype=torch.int32, device=rows.device))


def _is_wide(x: Tensor, block_t: int) -> bool:
    """True when offsets within one sample's tile pass 32 bits; masked frames beyond T are counted in."""
    return block_t * x.stride(1) + x.size(2) >= 2**31


def _launch_resident(layers, out, inverse, lengths, eps, final_instance) -> None:
    B, T, C = layers[0].shape
    config = resident_config(len(layers), T, C, layers[0].element_size())
    grid = (triton.cdiv(C, config["BLOCK_C"]), B)
    groups = _launches(layers)
    for i, group in enumerate(groups):
        _resident_fwd_kernel[grid](
            *_pointers(group), out, inverse, lengths, *group[0].stride()[:2], T, C, 1.0 / len(layers), eps,
            K=len(group), HAS_ROWS=inverse is not None, HAS_LENGTHS=lengths is not None, ADD=i > 0,
            FINAL_INSTANCE=final_instance and i == len(groups) - 1, EVEN_C=C % config["BLOCK_C"] == 0,
            WIDE=_is_wide(group[0], config["BLOCK_T"]), **config,
        )  # fmt: skip


def _launch_long(layers, out, inverse, lengths, eps) -> None:
    B, T, C = layers[0].shape
    has_lengths = lengths is not None
    for i, group in enumerate(_launches(layers)):
        strides = group[0].stride()[:2]
        mean, rstd = torch.empty((2, len(group), B, C), dtype=torch.float32, device=out.device)
        grid = (triton.cdiv(C, STATISTICS_CONFIG["BLOCK_C"]), B, len(group))
        _statistics_fwd_kernel[grid](
            *_pointers(group), mean, rstd, lengths, *strides, T, C, eps, HAS_LENGTHS=has_lengths, **STATISTICS_CONFIG
        )
        grid = (triton.cdiv(C, APPLY_CONFIG["BLOCK_C"]), B, triton.cdiv(T, APPLY_CONFIG["BLOCK_T"]))
        _apply_fwd_kernel[grid](
            *_pointers(group), out, mean, rstd, inverse, lengths, *strides, B, T, C, 1.0 / len(layers),
            K=len(group), HAS_ROWS=inverse is not None, HAS_LENGTHS=has_lengths, ADD=i > 0, **APPLY_CONFIG,
        )  # fmt: skip


def _launch_rows(layers, out, rows, lengths, eps, layer_norm, final_layer) -> None:
    T, C = layers[0].shape[1:]
    out_rows = out.numel() // C
    config = rows_config(C)
    groups = _launches(layers)
    for i, group in enumerate(groups):
        _rows_fwd_kernel[(triton.cdiv(out_rows, config["BLOCK_R"]),)](
            *_pointers(group), out, rows, lengths, *group[0].stride()[:2], out_rows, T, C, 1.0 / len(layers), eps,
            K=len(group), HAS_ROWS=rows is not None, HAS_LENGTHS=lengths is not None, ADD=i > 0,
            LAYER_NORM=layer_norm, FINAL_LAYER=final_layer and i == len(groups) - 1, **config,
        )  # fmt: skip
