"""Attention. ``attend`` is the one place that picks the backend."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from d2v_plugin.errors import UserError

# Elements of the largest (rows, H, T, T) bias that exists at a time, 128 MB in fp32.
BIAS_ELEMENTS = 2**25


def attend(q, k, v, *, padding_mask=None, bias=None, dropout=0.0):
    """Scaled dot-product attention through torch, which picks the fastest kernel there is.

    Args:
        q: (B, H, T, D).
        k, v: (B, H, S, D).
        padding_mask: (B, S) bool, True = not attended to, or None.
        bias: ``PositionBias`` of the same B rows (or of one for all), added to the logits, or None. It is made from
            positions for a few rows at a time, and made again in the backward pass, so that a bias of every row
            never exists at once. It is computed in fp32 and added in the dtype of ``q``.
        dropout: probability on the attention weights.
    Returns:
        (B, H, T, D).
    """
    if bias is None:
        seen = None if padding_mask is None else ~padding_mask[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
    if bias.rows == 1 and padding_mask is None:
        return _attend_biased(q, k, v, None, bias, dropout)
    rows = max(1, BIAS_ELEMENTS // (q.shape[1] * q.shape[2] * k.shape[2]))
    if rows >= q.shape[0] and not torch.is_grad_enabled():
        return _attend_biased(q, k, v, padding_mask, bias, dropout)
    parts = []
    for a in range(0, q.shape[0], rows):
        part = slice(a, a + rows)
        padding = None if padding_mask is None else padding_mask[part]
        inputs = q[part], k[part], v[part], padding, bias.part(part), dropout
        if torch.is_grad_enabled():
            parts.append(checkpoint(_attend_biased, *inputs, use_reentrant=False, preserve_rng_state=dropout > 0))
        else:
            parts.append(_attend_biased(*inputs))
    return torch.cat(parts)


def _attend_biased(q, k, v, padding_mask, bias, dropout):
    added = bias.dense().to(q.dtype)
    missing = q.shape[1] - added.shape[1]
    if missing:  # the last heads may go without
        added = F.pad(added, (0, 0, 0, 0, 0, missing))
    if padding_mask is not None:
        added = added.masked_fill(padding_mask[:, None, None, :], float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added, dropout_p=dropout)


def _check_heads(channels, heads):
    if channels % heads:
        raise UserError(f"the width {channels} is not a multiple of the {heads} attention heads")


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate projections; state-dict keys as in fairseq.

    Args:
        channels, heads: C and H; C must be a multiple of H.
        dropout: on the attention weights.
    """

    def __init__(self, channels, heads, dropout=0.0):
        super().__init__()
        _check_heads(channels, heads)
        self.heads, self.dropout = heads, dropout
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x, padding_mask=None):
        """(B, T, C) -> (B, T, C); frames where ``padding_mask`` (B, T) is True are not attended to."""
        q, k, v = (_split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = attend(q, k, v, padding_mask=padding_mask, dropout=self.dropout if self.training else 0.0)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class FusedSelfAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values; keys ``qkv`` and ``proj`` as timm.

    Args:
        channels, heads: C and H; C must be a multiple of H.
        dropout: on the attention weights.
    """

    def __init__(self, channels, heads, dropout=0.0):
        super().__init__()
        _check_heads(channels, heads)
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x, padding_mask=None, bias=None):
        """(B, T, C) -> (B, T, C); ``padding_mask`` and ``bias`` as in ``attend``."""
        q, k, v = (_split_heads(part, self.heads) for part in self.projected(x).chunk(3, dim=-1))
        y = attend(q, k, v, padding_mask=padding_mask, bias=bias, dropout=self.dropout if self.training else 0.0)
        return self.proj(y.transpose(1, 2).flatten(2))

    def projected(self, x):
        """(B, T, C) -> (B, T, 3 C): queries, keys and values."""
        return self.qkv(x)


class CrossAttention(nn.Module):
    """Attention of queries (B, T, C) to a memory (B, S, D); keys ``q_proj``, ``kv_proj``, ``proj`` as upstream."""

    def __init__(self, channels, memory_channels, heads):
        super().__init__()
        _check_heads(channels, heads)
        self.heads = heads
        self.q_proj = nn.Linear(channels, channels)
        self.kv_proj = nn.Linear(memory_channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x, memory):
        """Returns (B, T, C)."""
        k, v = (_split_heads(part, self.heads) for part in self.kv_proj(memory).chunk(2, dim=-1))
        y = attend(_split_heads(self.q_proj(x), self.heads), k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


def _split_heads(x, heads):
    """(B, T, C) -> (B, H, T, C / H)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
