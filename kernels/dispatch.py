"""The one place that decides which implementation runs.

CUDA tensors run the Triton kernel. CPU tensors run the eager twin in ``reference.py``, unless ``TRITON_INTERPRET=1``
asks for Triton's interpreter, which exists for tests and is thousands of times slower. Triton reads the variable when
it is imported, so it must stand in the environment before the process starts.
"""

import importlib.util
import os
from contextlib import nullcontext
from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def triton_available() -> bool:
    """True when the triton package can be imported (it has no wheel for macOS or Windows)."""
    return importlib.util.find_spec("triton") is not None


def interpreter_requested() -> bool:
    """True when the environment asks for Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def uses_triton(tensor: torch.Tensor) -> bool:
    """True when kernels run on this tensor, False when their eager twins do."""
    if not triton_available():
        return False
    # ROCm also calls its device "cuda"; Triton serves both, but only NVIDIA cards are compiled for in the tests.
    return tensor.is_cuda or (tensor.device.type == "cpu" and interpreter_requested())


def device_guard(tensor: torch.Tensor):
    """Context in which launches go to the tensor's device: Triton launches on the current one."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()
