"""Relative positions from convolutions over time."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from d2v_plugin.modules.conv_blocks import ConvNormGelu, SamePad


class WeightNormConv1d(nn.Module):
    """A grouped convolution whose weight is ``g * v / |v|``, the norm taken per tap.

    Own code rather than torch's parametrisation, for two reasons: the state dict keeps the names of
    published checkpoints (``weight_g``, ``weight_v``; torch's newer ``parametrizations.weight.original0/1``
    are read too), and the module can be deep-copied, which the teacher needs.
    """

    def __init__(self, channels, kernel, groups):
        super().__init__()
        self.groups, self.padding = groups, kernel // 2
        weight = torch.empty(channels, channels // groups, kernel).normal_(std=math.sqrt(4.0 / (kernel * channels)))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.weight_g = nn.Parameter(weight.norm(dim=(0, 1), keepdim=True))
        self.weight_v = nn.Parameter(weight)

    def forward(self, x):
        norm = torch.linalg.vector_norm(self.weight_v.float(), dim=(0, 1), keepdim=True)
        weight = self.weight_v * (self.weight_g.float() / norm).type_as(self.weight_v)
        return F.conv1d(x, weight, self.bias, padding=self.padding, groups=self.groups)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            new = f"{prefix}parametrizations.weight.{new}"
            if new in state_dict:
                state_dict[prefix + old] = state_dict.pop(new)
        super()._load_from_state_dict(state_dict, prefix, *args)


def conv_positions(channels, kernel, groups, depth):
    """The positional encoder: one weight-normed convolution, or ``depth`` small ones with layer norm.

    Module names follow fairseq. Maps (B, C, T) to (B, C, T).
    Source: depth 1 arXiv:2006.11477; depth 5 arXiv:2202.03555, section 4.2.
    """
    if depth <= 1:
        return nn.Sequential(WeightNormConv1d(channels, kernel, groups), SamePad(kernel), nn.GELU())
    return nn.Sequential(*position_blocks(channels, kernel, groups, depth))


def position_blocks(channels, width, groups, depth):
    """``depth`` small convolutions that see ``width`` frames together, each mapping (B, C, T) to (B, C, T)."""
    kernel = max(3, width // depth)
    return [ConvNormGelu(channels, channels, kernel, groups) for _ in range(depth)]
