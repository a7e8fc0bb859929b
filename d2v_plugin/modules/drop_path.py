"""Stochastic depth."""

import torch.nn as nn


class DropPath(nn.Module):
    """Drops a residual branch for whole rows with probability ``p`` in training, and scales the others by 1 / (1 - p).

    Source: Huang et al., arXiv:1603.09382.
    """

    def __init__(self, p=0.0):
        super().__init__()
        self.p = p

    def forward(self, x):
        """(B, ...) -> the same shape."""
        if self.p == 0 or not self.training:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.p)
        return x * kept / (1 - self.p)
