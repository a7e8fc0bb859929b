"""Self-attention. The one place that picks the backend."""

import torch.nn as nn
import torch.nn.functional as F

from d2v_plugin.errors import UserError


class SelfAttention(nn.Module):
    """Multi-head self-attention through ``scaled_dot_product_attention``, which picks the fastest kernel there is.

    State-dict keys as in fairseq (``q_proj``, ``k_proj``, ``v_proj``, ``out_proj``).

    Args:
        channels, heads: C and H; C must be a multiple of H.
        dropout: on the attention weights.
    """

    def __init__(self, channels, heads, dropout=0.0):
        super().__init__()
        if channels % heads:
            raise UserError(f"encoder_embed_dim {channels} is not a multiple of encoder_attention_heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x, padding_mask=None):
        """(B, T, C) -> (B, T, C); frames where ``padding_mask`` (B, T) is True are not attended to."""
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        seen = None if padding_mask is None else ~padding_mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x):
        """(B, T, C) -> (B, H, T, C / H)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
