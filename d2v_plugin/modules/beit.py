"""The transformer of data2vec 1.0 for images, BEiT's: pre-norm, layer scale, relative position bias, a class token.

State-dict keys are those of fairseq's ``data2vec_vision``. Source: arXiv:2106.08254; arXiv:2202.03555, section 4.1.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from d2v_plugin.modules.attention import FusedSelfAttention
from d2v_plugin.modules.drop_path import DropPath
from d2v_plugin.modules.init import beit_init
from d2v_plugin.modules.position_bias import RelativePositionBias, add_relative_positions, relative_bias


class BeitAttention(FusedSelfAttention):
    """Self-attention whose keys have no bias term.

    Args:
        channels, heads: C and H; C must be a multiple of H.
        side: patches along a side, for a relative position bias of its own; None for none.
        dropout: on the attention weights.
    """

    def __init__(self, channels, heads, side=None, dropout=0.0):
        super().__init__(channels, heads, dropout)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.own_bias = side is not None
        if self.own_bias:
            add_relative_positions(self, side, heads)

    def projected(self, x):
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.qkv.weight, bias)

    def forward(self, x, bias=None):
        """(B, 1 + L, C) -> (B, 1 + L, C); a ``bias`` from outside is used where there is none of its own."""
        return super().forward(x, bias=relative_bias(self) if self.own_bias else bias)


class BeitBlock(nn.Module):
    """Attention and feed-forward, each behind a layer norm and scaled by learned factors of each channel.

    Args:
        layer_scale: initial factor; 0 for no factors.
        drop_path: probability that a row skips a branch.
        channels, heads, side, dropout: see ``BeitAttention``.
    """

    def __init__(self, channels, heads, mlp_ratio, *, layer_scale=0.0, drop_path=0.0, side=None, dropout=0.0):
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm1 = nn.LayerNorm(channels)
        self.attn = BeitAttention(channels, heads, side, dropout)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        scaled = layer_scale > 0
        self.gamma_1 = nn.Parameter(torch.full((channels,), float(layer_scale))) if scaled else None
        self.gamma_2 = nn.Parameter(torch.full((channels,), float(layer_scale))) if scaled else None

    def forward(self, x, bias=None):
        """(B, 1 + L, C) -> ``(x, ffn)``: the block's output, and the feed-forward branch that its residual adds."""
        x = x + self._branch(self.attn(self.norm1(x), bias), self.gamma_1)
        ffn = self._branch(self.mlp(self.norm2(x)), self.gamma_2)
        return x + ffn, ffn

    def _branch(self, x, factors):
        return self.drop_path(x if factors is None else factors * x)


class BeitEncoder(nn.Module):
    """The blocks, the position bias that they share, and a last layer norm.

    Args:
        channels, heads, mlp_ratio: of the blocks.
        depth: how many.
        side: patches along a side.
        shared_bias: one position bias for all blocks; else one in each.
        drop_path: of the last block; it grows linearly from 0.
        layer_scale, dropout: see ``BeitBlock``.
    """

    def __init__(
        self, channels, heads, mlp_ratio, depth, side, *, shared_bias=True, layer_scale=0.0, drop_path=0.0, dropout=0.0
    ):
        super().__init__()
        self.rel_pos_bias = RelativePositionBias(side, heads) if shared_bias else None
        self.blocks = nn.ModuleList(
            BeitBlock(
                channels,
                heads,
                mlp_ratio,
                layer_scale=layer_scale,
                drop_path=p,
                side=None if shared_bias else side,
                dropout=dropout,
            )
            for p in torch.linspace(0, drop_path, depth).tolist()
        )
        self.norm = nn.LayerNorm(channels)
        self.apply(beit_init)
        with torch.no_grad():
            # deeper branches start smaller, as in BEiT
            for n, block in enumerate(self.blocks, 1):
                block.attn.proj.weight.div_(math.sqrt(2 * n))
                block.mlp[2].weight.div_(math.sqrt(2 * n))

    def extract_features(self, x, layer_results=None, first_result=0):
        """All positions, the class token first.

        Args:
            x: (B, 1 + L, C).
            layer_results: None, ``end`` for the blocks' outputs, ``fc`` for their feed-forward branches.
            first_result: the first block (0-based) whose result is kept.
        Returns:
            (B, 1 + L, C) behind the last norm; or a list of such tensors, one a block from ``first_result`` on.
        """
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        results = []
        for n, block in enumerate(self.blocks):
            x, ffn = block(x, bias)
            if layer_results and n >= first_result:
                results.append(x if layer_results == "end" else ffn)
        return results if layer_results else self.norm(x)

    def forward(self, x, layer_results=None, first_result=0):
        """``extract_features`` without the class token: (B, L, C) or a list of them."""
        x = self.extract_features(x, layer_results, first_result)
        return [layer[:, 1:] for layer in x] if layer_results else x[:, 1:]
