"""Activation functions under the names fairseq's configurations use."""

from functools import partial

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_fast": partial(F.gelu, approximate="tanh"),
    "gelu_accurate": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "linear": torch.nn.Identity(),
}


def activation(name):
    """Raises ``ValueError`` for a name fairseq does not have."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation_fn must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
