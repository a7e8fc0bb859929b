"""The transformer of 1.0: post- or pre-norm blocks, how a stack of them runs, and the encoder of speech around them."""

import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from d2v_plugin.errors import UserError
from d2v_plugin.modules.activations import activation
from d2v_plugin.modules.attention import SelfAttention
from d2v_plugin.modules.blocks import LayerDrop
from d2v_plugin.modules.init import bert_init
from d2v_plugin.modules.positions import conv_positions


class TransformerBlock(nn.Module):
    """Attention and feed-forward with residuals; hands out the feed-forward's result before dropout and residual.

    State-dict keys as in fairseq's ``TransformerSentenceEncoderLayer``.
    """

    def __init__(
        self,
        channels,
        ffn,
        heads,
        dropout,
        attention_dropout,
        activation_dropout,
        activation_fn,
        norm_first,
        residual_scale=1.0,
    ):
        super().__init__()
        self.self_attn = SelfAttention(channels, heads, attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, ffn)
        self.fc2 = nn.Linear(ffn, channels)
        self.final_layer_norm = nn.LayerNorm(channels)
        self.dropout, self.activation_dropout = dropout, activation_dropout
        self.activation = activation(activation_fn)
        self.norm_first, self.residual_scale = norm_first, residual_scale

    def forward(self, x, padding_mask=None):
        """(B, T, C) -> ``(x, ffn)``, both (B, T, C)."""
        if self.norm_first:
            x = x + self._drop(self.self_attn(self.self_attn_layer_norm(x), padding_mask))
            ffn = self._feed_forward(self.final_layer_norm(x))
            return x + self._drop(ffn), ffn
        x = self.self_attn_layer_norm(self._residual(x) + self._drop(self.self_attn(x, padding_mask)))
        ffn = self._feed_forward(x)
        return self.final_layer_norm(self._residual(x) + self._drop(ffn)), ffn

    def _residual(self, x):
        return x if self.residual_scale == 1 else x * self.residual_scale

    def _feed_forward(self, x):
        x = self.activation(self.fc1(x))
        return self.fc2(F.dropout(x, self.activation_dropout, self.training))

    def _drop(self, x):
        return F.dropout(x, self.dropout, self.training)


def run_blocks(blocks, x, padding_mask, skipped, *, checkpointing=False, first_result=0, last_layer=None):
    """Run a stack of ``TransformerBlock``.

    Args:
        x: (B, T, C).
        padding_mask: (B, T) bool or None.
        skipped: a bool for each block, those that LayerDrop leaves out.
        checkpointing: compute activations again in the backward pass.
        first_result: collect results from this block (0-based) on.
        last_layer: stop after this block.
    Returns:
        ``(x, results)``; the latter holds ``(x, ffn)`` for each block that ran, both (B, T, C).
    """
    results = []
    for i, block in enumerate(blocks):
        if not skipped[i]:
            if checkpointing:
                x, ffn = checkpoint(block, x, padding_mask, use_reentrant=False)
            else:
                x, ffn = block(x, padding_mask)
            if i >= first_result:
                results.append((x, ffn))
        if i == last_layer:
            break
    return x, results


class TransformerEncoder(nn.Module):
    """Positions, blocks, LayerDrop. Parameter names as in fairseq's wav2vec 2.0 encoder.

    ``deepnorm`` multiplies residuals by ``(2 * depth) ** 0.25`` and starts the projections after them smaller
    (Wang et al., DeepNet, arXiv:2203.00555, figure 2), as the paper's AudioSet model does.
    Unlike fairseq's, the sequence is not padded to an even length: attention ignored those frames anyway.
    """

    def __init__(
        self,
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
        conv_pos=128,
        conv_pos_groups=16,
        pos_conv_depth=1,
        checkpoint_activations=False,
        deepnorm=False,
    ):
        super().__init__()
        if deepnorm and norm_first:
            raise UserError("deepnorm is a post-norm scheme; set layer_norm_first to false")
        scale = (2 * depth) ** 0.25 if deepnorm else 1.0
        self.pos_conv = conv_positions(channels, conv_pos, conv_pos_groups, pos_conv_depth)
        self.layers = nn.ModuleList(
            TransformerBlock(
                channels, ffn, heads, dropout, attention_dropout, activation_dropout, activation_fn, norm_first, scale
            )
            for _ in range(depth)
        )
        self.layer_norm = nn.LayerNorm(channels)
        self.dropout, self.norm_first = dropout, norm_first
        self.layerdrop = LayerDrop(layerdrop, "layerdrop")
        self.checkpoint_activations = checkpoint_activations
        self.apply(bert_init)
        if deepnorm:
            _init_deepnorm(self.layers)

    def forward(self, x, padding_mask=None, layer=None):
        """(B, T, C) -> ``(x, layer_results)``; stops after block ``layer`` (0-based) and then skips the last norm."""
        x, layer_results = self.extract_features(x, padding_mask, last_layer=layer)
        if self.norm_first and layer is None:
            x = self.layer_norm(x)
        return x, layer_results

    def extract_features(self, x, padding_mask=None, first_result=0, last_layer=None):
        """Run the blocks.

        Args:
            x: (B, T, C); padded frames are set to zero first.
            first_result: collect results from this block (0-based) on.
            last_layer: stop after this block.
        Returns:
            ``(x, layer_results)``; the latter holds ``(x, None, ffn)`` for each block that ran, each
            (T, B, C) as in fairseq (views, no copies).
        """
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0)
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        if not self.norm_first:
            x = self.layer_norm(x)
        x = F.dropout(x, self.dropout, self.training)

        x, results = run_blocks(
            self.layers,
            x,
            padding_mask,
            self.layerdrop.skipped(len(self.layers), self.training),
            checkpointing=self.checkpoint_activations and self.training,
            first_result=first_result,
            last_layer=last_layer,
        )
        return x, [(x.transpose(0, 1), None, ffn.transpose(0, 1)) for x, ffn in results]


def _init_deepnorm(layers):
    gain = (8 * len(layers)) ** -0.25
    for block in layers:
        for linear in (block.fc1, block.fc2, block.self_attn.v_proj, block.self_attn.out_proj):
            nn.init.xavier_normal_(linear.weight, gain=gain)
        for linear in (block.self_attn.q_proj, block.self_attn.k_proj):
            nn.init.xavier_normal_(linear.weight)
