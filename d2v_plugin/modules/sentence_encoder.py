"""The text encoder of 1.0: embedded tokens through transformer blocks; state-dict keys as in fairseq's encoder."""

from dataclasses import dataclass

import torch
import torch.nn as nn

from d2v_plugin.modules.blocks import LayerDrop
from d2v_plugin.modules.init import bert_init
from d2v_plugin.modules.token_embedding import TokenEmbedding
from d2v_plugin.modules.transformer import TransformerBlock, run_blocks

# of fairseq's TransformerEncoder, which writes it into every checkpoint
VERSION = 3.0


@dataclass
class EncodedTokens:
    """All are (B, T, C).

    ``x``: output of the last block, normalised where blocks are pre-norm. ``embedded``: tokens before positions.
    ``first``: input of the first block. ``results``: ``(x, ffn)`` of each block that ran, from ``first_result`` on.
    """

    x: torch.Tensor
    embedded: torch.Tensor
    first: torch.Tensor
    results: list


class SentenceEncoder(TokenEmbedding):
    """Embedding, positions, blocks, LayerDrop.

    Args:
        vocabulary, padding_idx, max_positions: see ``TokenEmbedding``, which takes ``embedding``, too.
        channels, ffn, heads, depth: sizes.
        dropout: after the embedding, the attention and the feed-forward.
        norm_first: pre-norm blocks and a norm after the last.
        layerdrop: probability that a block is skipped.
        checkpoint_activations: compute activations again in the backward pass.
    """

    def __init__(
        self,
        vocabulary,
        padding_idx,
        max_positions,
        channels,
        ffn,
        heads,
        depth,
        *,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.0,
        activation_fn="gelu",
        norm_first=False,
        layerdrop=0.0,
        checkpoint_activations=False,
        **embedding,
    ):
        super().__init__(vocabulary, channels, padding_idx, max_positions, dropout=dropout, **embedding)
        self.register_buffer("version", torch.tensor([VERSION]))
        self.layers = nn.ModuleList(
            TransformerBlock(
                channels, ffn, heads, dropout, attention_dropout, activation_dropout, activation_fn, norm_first
            )
            for _ in range(depth)
        )
        self.layer_norm = nn.LayerNorm(channels) if norm_first else None
        self.layerdrop = LayerDrop(layerdrop, "layerdrop:text")
        self.checkpoint_activations = checkpoint_activations
        self.apply(bert_init)

    def forward(self, tokens, padding_mask=None, *, embedded=None, first_result=0):
        """Encode tokens.

        Args:
            tokens: (B, T) int64.
            padding_mask: (B, T) bool, True = padding, or None where there is none.
            embedded: (B, T, C) to take for the tokens' vectors.
            first_result: collect results from this block (0-based) on.
        Returns:
            ``EncodedTokens``.
        Raises:
            UserError: more tokens than there are positions.
        """
        embedded = self.scale * (self.embed_tokens(tokens) if embedded is None else embedded)
        first = self.placed(embedded, tokens)
        if padding_mask is not None:
            first = first.masked_fill(padding_mask.unsqueeze(-1), 0)
        x, results = run_blocks(
            self.layers,
            first,
            padding_mask,
            self.layerdrop.skipped(len(self.layers), self.training),
            checkpointing=self.checkpoint_activations and self.training,
            first_result=first_result,
        )
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return EncodedTokens(x, embedded, first, results)
