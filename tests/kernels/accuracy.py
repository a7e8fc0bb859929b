"""The rule by which a kernel's numbers are accepted."""

import torch
from torch import Tensor


def assert_as_accurate_as_eager(kernel: Tensor, eager: Tensor, oracle: Tensor, floor: float = 2e-6) -> None:
    """The kernel errs at most twice as much as eager code of the same dtype, plus a floor.

    oracle is fp64, computed from the same rounded inputs. The floor is relative to the oracle's largest value, and is
    a few units in the last place of an fp32 result; results in a narrower dtype add half of their own unit.
    """
    assert kernel.shape == oracle.shape
    assert torch.isfinite(kernel).all()
    kernel, eager, oracle = kernel.detach().cpu(), eager.detach().cpu(), oracle.detach().cpu()
    size = oracle.abs().max().item() if oracle.numel() else 0.0
    if kernel.dtype != torch.float32:
        floor += torch.finfo(kernel.dtype).eps / 2
    error = (kernel.double() - oracle).abs().max().item() if oracle.numel() else 0.0
    allowed = 2 * ((eager.double() - oracle).abs().max().item() if oracle.numel() else 0.0) + floor * max(size, 1e-30)
    assert error <= allowed, f"error {error:.3e}, allowed {allowed:.3e}, largest value {size:.3e}"
