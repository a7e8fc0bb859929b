"""The transformer blocks of 2.0 and the stacks they form, with upstream's state-dict keys."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from d2v_plugin.modules.attention import CrossAttention, FusedSelfAttention
from d2v_plugin.modules.drop_path import DropPath
from d2v_plugin.randomness import DrawStream


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))`` with dropout after both layers, as timm's."""

    def __init__(self, channels, hidden, dropout=0.0):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.dropout = dropout

    def forward(self, x):
        """(..., C) -> (..., C)."""
        x = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)


class Block(nn.Module):
    """Attention and feed-forward with residuals; hands out what a target is made of.

    Pre-norm is upstream's: the residual around the feed-forward starts at the feed-forward's own output, so the
    branch counts twice and what came before it is left out. Published pre-norm weights need it so.

    Args:
        channels, heads, mlp_ratio: sizes.
        make_norm: ``make_norm(channels)`` gives a layer norm.
        norm_first: pre-norm; else post-norm.
        dropout, attention_dropout, activation_dropout, post_mlp_dropout: after attention, on attention weights,
            inside the feed-forward, after it.
        drop_path: probability that a row skips a branch.
        end_of_block_targets: hand out the block's output; else the feed-forward's, before dropout and residual.
    """

    def __init__(
        self,
        channels,
        heads,
        mlp_ratio=4.0,
        *,
        make_norm=nn.LayerNorm,
        norm_first=False,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        post_mlp_dropout=0.0,
        drop_path=0.0,
        end_of_block_targets=False,
    ):
        super().__init__()
        self.norm1 = make_norm(channels)
        self.attn = FusedSelfAttention(channels, heads, attention_dropout)
        self.drop_path = DropPath(drop_path)
        self.norm2 = make_norm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio), activation_dropout)
        self.dropout, self.post_mlp_dropout = dropout, post_mlp_dropout
        self.norm_first, self.end_of_block_targets = norm_first, end_of_block_targets

    def forward(self, x, padding_mask=None, bias=None):
        """(B, T, C) -> ``(x, target)``, both (B, T, C); ``padding_mask`` and ``bias`` as in ``attend``."""
        if self.norm_first:
            x = x + self._attention(self.norm1(x), padding_mask, bias)
            ffn = self.mlp(self.norm2(x))
            x = ffn + self._after_mlp(ffn)
        else:
            x = self.norm1(x + self._attention(x, padding_mask, bias))
            ffn = self.mlp(x)
            x = self.norm2(x + self._after_mlp(ffn))
        return x, x if self.end_of_block_targets else ffn

    def _attention(self, x, padding_mask, bias):
        return self.drop_path(F.dropout(self.attn(x, padding_mask, bias), self.dropout, self.training))

    def _after_mlp(self, ffn):
        return self.drop_path(F.dropout(ffn, self.post_mlp_dropout, self.training))


class CrossBlock(nn.Module):
    """Queries attend to a memory, then feed-forward; post-norm. Without ``residual`` the queries are left out."""

    def __init__(self, channels, memory_channels, heads, residual=True):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = CrossAttention(channels, memory_channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.residual = residual

    def forward(self, x, memory):
        """(B, T, C) and (B, S, D) -> (B, T, C)."""
        attended = self.attn(x, memory)
        x = self.norm1(x + attended if self.residual else attended)
        return self.norm2(x + self.mlp(x))


class LayerDrop:
    """Which blocks of a stack are skipped: one host-side draw for all of them, alike on all ranks.

    Args:
        p: probability of each block.
        name: of its stream of draws; stacks of different names draw independently.
    """

    def __init__(self, p, name):
        self.p = p
        self._draws = DrawStream(name)

    def skipped(self, blocks, training):
        """A bool for each of ``blocks`` blocks."""
        if not training or self.p <= 0:
            return [False] * blocks
        return (torch.rand(blocks, generator=self._draws.generator()) <= self.p).tolist()


class BlockStack(nn.Module):
    """Blocks with a norm before (post-norm blocks) or after them (pre-norm), LayerDrop and input dropout.

    Args:
        blocks: list of ``Block``.
        norm: layer norm or None.
        norm_first: whether the blocks are pre-norm.
        layerdrop: probability that a block is skipped.
        dropout: on the input, after a norm before the blocks.
        name: of the LayerDrop draws.
    """

    def __init__(self, blocks, norm=None, norm_first=False, layerdrop=0.0, dropout=0.0, name="prenet"):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.norm_first, self.dropout = norm_first, dropout
        self.layerdrop = LayerDrop(layerdrop, f"layerdrop:{name}")

    def forward(self, x, padding_mask=None, bias_of=None):
        """(B, T, C) -> (B, T, C).

        Args:
            padding_mask: (B, T) bool or None.
            bias_of: ``bias_of(i)`` gives block i's ``PositionBias`` (or None); None for no bias.
        """
        if self.norm is not None and not self.norm_first:
            x = self.norm(x)
        x = F.dropout(x, self.dropout, self.training)
        skipped = self.layerdrop.skipped(len(self.blocks), self.training)
        for i, block in enumerate(self.blocks):
            if not skipped[i]:
                x, _ = block(x, padding_mask, bias_of(i) if bias_of is not None else None)
        if self.norm is not None and self.norm_first:
            x = self.norm(x)
        return x
