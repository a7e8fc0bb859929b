"""Checks of user input shared by the public functions: each failure is one line that says what to change."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def check_float(name: str, x: Tensor) -> None:
    """Raise ValueError unless x is fp16, bf16 or fp32 (or fp64 on CPU, for oracles) with unit channel stride."""
    if x.dtype not in FLOATS and not (x.dtype == torch.float64 and x.device.type == "cpu"):
        raise ValueError(f"{name} must be float16, bfloat16 or float32, got {x.dtype}; cast it first")
    # a dimension of one element, or an empty tensor, has a stride that means nothing
    if x.stride(-1) != 1 and x.size(-1) > 1 and x.numel() > 0:
        raise ValueError(f"{name} must have channel stride 1, got strides {tuple(x.stride())}; call .contiguous()")


def check_rows(name: str, rows: Tensor, device: torch.device) -> None:
    """Raise ValueError unless rows is a 1-d int64 tensor on the given device."""
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise ValueError(f"{name} must be (M,) int64, got {tuple(rows.shape)} {rows.dtype}; flatten the row indices")
    if rows.device != device:
        raise ValueError(f"{name} must be on {device}, got {rows.device}; move it there")
