"""A stand-in for tensors on a GPU, to find what a step reads back from there."""

import torch


class OnDevice(torch.Tensor):
    """A tensor that behaves as if it lived on a GPU: reading its values on the host is an error."""

    READS = {
        getattr(torch.Tensor, name)
        for name in ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "nonzero", "cpu")
    } | {torch.nonzero, torch.masked_select, torch.unique, torch.is_nonzero}

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in cls.READS:
            raise AssertionError(f"host read through {func.__name__}")
        if func is torch.Tensor.__getitem__ and getattr(args[1], "dtype", None) == torch.bool:
            raise AssertionError("host read through a boolean index")
        return super().__torch_function__(func, types, args, kwargs or {})
