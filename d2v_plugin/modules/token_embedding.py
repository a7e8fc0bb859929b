"""Tokens to vectors: embedding, positions, layer norm. State-dict keys as upstream."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from d2v_plugin.errors import UserError


class TokenEmbedding(nn.Module):
    """Embeds tokens and their positions; padding is at no position.

    Args:
        vocabulary: number of symbols.
        channels: C.
        padding_idx: the symbol of padding.
        max_positions: longest sequence, tokens.
        learned_positions: a table, else sines and cosines.
        positions: whether tokens are told apart by position at all.
        scale: multiply embeddings by sqrt(C).
        norm: layer norm at the end.
        dropout: after the norm.
        setting: the configuration key of ``max_positions``, for messages.
    """

    def __init__(
        self,
        vocabulary,
        channels,
        padding_idx,
        max_positions,
        *,
        learned_positions=True,
        positions=True,
        scale=False,
        norm=True,
        dropout=0.0,
        setting="model.modalities.text.max_source_positions",
    ):
        super().__init__()
        self.padding_idx, self.max_positions, self._setting = padding_idx, max_positions, setting
        self.embed_tokens = nn.Embedding(vocabulary, channels, padding_idx)
        self.embed_positions = None
        if positions:
            table = LearnedPositions if learned_positions else SinusoidalPositions
            self.embed_positions = table(padding_idx + 1 + max_positions, channels, padding_idx)
        self.layernorm_embedding = nn.LayerNorm(channels) if norm else None
        self.scale, self.dropout = math.sqrt(channels) if scale else 1.0, dropout

    def forward(self, tokens):
        """(B, T) int64 -> (B, T, C).

        Raises:
            UserError: more tokens than there are positions.
        """
        return self.placed(self.scale * self.embed_tokens(tokens), tokens)

    def placed(self, embedded, tokens):
        """``forward`` for tokens that are vectors already, (B, T, C), ``scale`` included."""
        x = embedded
        if self.embed_positions is not None:
            if tokens.shape[1] > self.max_positions:
                raise UserError(
                    f"a sequence of {tokens.shape[1]} tokens is longer than max_source_positions {self.max_positions}; "
                    f"lower task.tokens_per_sample or raise {self._setting}"
                )
            x = x + self.embed_positions(token_positions(tokens, self.padding_idx))
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return F.dropout(x, self.dropout, self.training)


def token_positions(tokens, padding_idx):
    """(B, T) positions, counted from ``padding_idx + 1``; padding is at ``padding_idx``, as in fairseq."""
    real = tokens.ne(padding_idx).long()
    return real.cumsum(1) * real + padding_idx


class LearnedPositions(nn.Embedding):
    """A table of positions, which starts with rows of about unit length."""

    def reset_parameters(self):
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)
        self._fill_padding_idx_with_zero()


class SinusoidalPositions(nn.Module):
    """Fixed positions: sines in the first half of the channels, cosines in the second. Source: arXiv:1706.03762."""

    def __init__(self, positions, channels, padding_idx):
        super().__init__()
        half = channels // 2
        rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / max(half - 1, 1)))
        angles = torch.arange(positions, dtype=torch.float32)[:, None] * rates
        table = F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, channels % 2))
        table[padding_idx] = 0
        self.register_buffer("table", table, persistent=False)

    def forward(self, positions):
        """(B, T) -> (B, T, C)."""
        return self.table[positions]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name in ("weights", "_float_tensor"):  # leftovers of older fairseq, without content
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
