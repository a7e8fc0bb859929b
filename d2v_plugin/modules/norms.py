"""Normalisations in fp32 whatever the dtype around them, and the layout change they need in a convolution stack."""

import torch.nn as nn
import torch.nn.functional as F


class Fp32LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, computed in fp32, returned in the dtype of the input."""

    def forward(self, x):
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).type_as(x)


class Fp32GroupNorm(nn.GroupNorm):
    """GroupNorm computed in fp32, returned in the dtype of the input."""

    def forward(self, x):
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).type_as(x)


class TransposeLast(nn.Module):
    """Swaps the last two axes: (B, C, T) and (B, T, C)."""

    def forward(self, x):
        return x.transpose(-2, -1)
