"""Teacher targets of data2vec: normalise each of the top K layers, average them, keep the masked frames.

    y[b,t,c] = mean_k (x_k[b,t,c] - m_k[b,c]) / sqrt(v_k[b,c] + eps)

The Triton side is in ``topk_instance_norm_mean_triton.py``, a file of its own so that this one imports where Triton
has no wheel. Source: arXiv:2202.03555, section 3.2; arXiv:2212.07525.
"""

from collections.abc import Sequence

from torch import Tensor

from . import reference
from .checks import check_float, check_rows
from .dispatch import uses_triton

LAYER_NORMS = ("instance", "layer", "none")


def topk_instance_norm_mean(
    layers: Sequence[Tensor],
    *,
    layer_norm: str = "instance",
    final_norm: str = "none",
    rows: Tensor | None = None,
    mask_indices: Tensor | None = None,
    lengths: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise K teacher layers, average them, normalise the mean if asked to, and return all or the masked frames.

    Args:
        layers: K tensors (B, T, C) of one shape and dtype, fp16/bf16/fp32, channel stride 1, any other strides
            (v1's layer results are transposed T, B, C; v2's are slices past the extra tokens).
        layer_norm: what each layer is normalised over: "instance" time (audio), "layer" channels (text), "none".
            Neither has weights; variances are biased and computed in fp32 in two passes.
        final_norm: the same for the mean.
        rows: (M,) int64 flat indices b * T + t of the frames to return, in any order, each at most once. No host read.
            A repeated row, or one outside [0, B * T), is undefined behaviour: checking would wait for the device.
        mask_indices: (B, T) bool instead of rows, True = masked. Counting it is one host read of a device tensor: on
            the training path make rows on the host, where the mask was drawn.
        lengths: (B,) integers. Time statistics see only the first lengths[b] frames, and frames after them come out
            as zeros. Default: padded frames count, as in fairseq. A length above T counts as T, one below 0 as 0.
        eps: added to the variance (squared activation units).
    Returns:
        fp32 (B, T, C), contiguous, or (M, C) with rows or mask_indices. Never carries a gradient.
    Raises:
        ValueError: no layers, unequal shapes or dtypes, strided channels, T < 2 with an instance norm, rows and
            mask_indices together, or an unknown norm.
    """
    layers = list(layers)
    _check(layers, layer_norm, final_norm, rows, mask_indices, lengths)
    if mask_indices is not None:
        rows = mask_indices.reshape(-1).nonzero().squeeze(1)
    options = {"layer_norm": layer_norm, "final_norm": final_norm, "rows": rows, "lengths": lengths, "eps": eps}
    if uses_triton(layers[0]):
        from .topk_instance_norm_mean_triton import topk_instance_norm_mean_triton

        return topk_instance_norm_mean_triton(layers, **options)
    return reference.topk_instance_norm_mean(layers, **options)


def _check(layers, layer_norm, final_norm, rows, mask_indices, lengths) -> None:
    if not layers:
        raise ValueError("layers is empty; pass at least one teacher layer (average_top_k_layers >= 1)")
    first = layers[0]
    if first.dim() != 3:
        raise ValueError(f"layers must be (B, T, C), got {tuple(first.shape)}; transpose or reshape them")
    for k, x in enumerate(layers):
        if x.shape != first.shape or x.dtype != first.dtype or x.device != first.device:
            raise ValueError(
                f"layers must share shape, dtype and device, got {tuple(x.shape)} {x.dtype} {x.device} at {k} and "
                f"{tuple(first.shape)} {first.dtype} {first.device} at 0; pass the layers of one forward pass"
            )
        check_float(f"layers[{k}]", x)
    for name, value in (("layer_norm", layer_norm), ("final_norm", final_norm)):
        if value not in LAYER_NORMS:
            raise ValueError(f"{name} must be one of {', '.join(LAYER_NORMS)}, got {value!r}")
    batch, frames, _ = first.shape
    if frames < 2 and "instance" in (layer_norm, final_norm):
        raise ValueError(f"instance norm over time needs at least 2 frames, got T={frames}; drop shorter inputs")
    if rows is not None and mask_indices is not None:
        raise ValueError("rows and mask_indices say the same thing; pass one of them")
    if rows is not None:
        check_rows("rows", rows, first.device)
    if mask_indices is not None and mask_indices.shape != first.shape[:2]:
        raise ValueError(f"mask_indices must be (B, T) = {(batch, frames)}, got {tuple(mask_indices.shape)}")
    if lengths is not None and (lengths.shape != (batch,) or lengths.is_floating_point()):
        raise ValueError(f"lengths must be ({batch},) integers, got {tuple(lengths.shape)} {lengths.dtype}")
    if lengths is not None and lengths.device != first.device:
        raise ValueError(f"lengths must be on {first.device}, got {lengths.device}; move it there")
