"""Activation functions under the names fairseq's configurations use."""

from functools import partial

import torch
import torch.nn.functional as F

from d2v_plugin.errors import UserError

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
    """Raises ``UserError`` for a name fairseq does not have."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation_fn must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
