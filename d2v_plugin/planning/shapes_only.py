"""Runs a training step for its shapes alone: every large tensor is allocated and none is computed.

What a step holds at once does not depend on the numbers in it, but it does on masks, which are drawn for real. So
operations on large floating tensors return memory that was never written (and that the system never has to provide),
and everything else runs as usual. Autograd works above this: what it keeps for the backward pass is kept here, too, and
counted while it lives. A step of a network with 300 million parameters takes seconds on one core.

What a GPU's libraries allocate beside tensors is not seen: workspaces of cuDNN and cuBLAS, and what the caching
allocator cannot hand out again.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# elements from which a tensor is large; what is below runs for real, the drawing of masks above all
LARGE = 2**20


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, attention keeps what a GPU's fused kernels keep: inputs, output, and one number a query.

    Without it torch would take its plain way on a CPU wherever weights are dropped or a bias learns, which keeps the
    weights of all pairs. The function is exchanged because a mode is not entered again where checkpointing recomputes.
    """
    original = F.scaled_dot_product_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        bias = attn_mask if attn_mask is not None and attn_mask.is_floating_point() else None
        return _Attention.apply(q, k, v, bias)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


class _Attention(torch.autograd.Function):
    """Shapes of a fused attention, forward and backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        logsumexp = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, bias, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        q, k, v, bias, _, _ = ctx.saved_tensors
        wanted = bias is not None and ctx.needs_input_grad[3]
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(bias) if wanted else None


class ShapesOnly(TorchDispatchMode):
    """While entered, large floating operations only allocate.

    ``live``: bytes of the storages made inside that still exist; ``peak``: the most there were since ``restart``.
    Storages are counted once, however many tensors look at them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def restart(self) -> int:
        """Measure the peak anew; returns what lives now."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        returned = func._schema.returns
        inputs = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if any(item.alias_info is not None and not item.alias_info.is_write for item in returned):
            return func(*args, **kwargs)  # a view
        large = any(tensor.numel() >= LARGE and tensor.is_floating_point() for tensor in inputs)
        if _writes(func):
            return _written(func, args, kwargs) if large else self._counted(func(*args, **kwargs))
        if large or _makes_large(func, args):
            made = _meta(func, args, kwargs)
            if made is not None:
                return self._counted(tree_map(_allocated, made))
        return self._counted(func(*args, **kwargs))

    def _counted(self, results: Any) -> Any:
        for leaf in tree_flatten(results)[0]:
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen and self._seen[key]() is storage:
            return

        def gone(_: Any) -> None:
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _writes(func: Any) -> bool:
    """Whether an operation changes one of its arguments."""
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)


def _written(func: Any, args: tuple, kwargs: dict) -> Any:
    """What an operation that writes returns: the arguments it would have written, as they were."""
    names = [argument.name for argument in func._schema.arguments]
    changed = [
        dict(zip(names, args, strict=False)).get(argument.name, kwargs.get(argument.name))
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    count = len(func._schema.returns)
    return None if count == 0 else changed[0] if count == 1 else tuple(changed[:count])


def _makes_large(func: Any, args: tuple) -> bool:
    """Whether a size is among the arguments that makes a large tensor, as of zeros or random numbers."""
    if func.namespace != "aten" or not args or not isinstance(args[0], (list, tuple, torch.Size)):
        return False
    sizes = args[0]
    return all(isinstance(size, int) for size in sizes) and torch.Size(sizes).numel() >= LARGE


def _meta(func: Any, args: tuple, kwargs: dict) -> Any:
    """The results' shapes from torch's own rules, None where they depend on values or there is no rule."""

    def shape_of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
        return torch.device("meta") if isinstance(value, torch.device) else value

    try:
        made = func(*tree_map(shape_of, args), **tree_map(shape_of, kwargs))
    except (NotImplementedError, RuntimeError):
        # torch says either where it has no rule without numbers; the operation then runs, and what is wrong shows there
        return None
    tensors = [leaf for leaf in tree_flatten(made)[0] if isinstance(leaf, Tensor)]
    # numbers that Python asks for, and results that are no floats (masks, indices), come from the real thing
    return made if tensors and all(leaf.is_floating_point() or leaf.numel() == 0 for leaf in tensors) else None


def _allocated(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.device.type != "meta":
        return value
    empty = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cpu")
    # single numbers are looked at: losses, norms, statistics
    return empty.fill_(0.5) if value.numel() < LARGE else empty
