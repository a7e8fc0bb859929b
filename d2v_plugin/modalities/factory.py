"""Makes blocks, norms, stacks and decoders of one model, so that modalities need not know its settings."""

from functools import partial

import torch
import torch.nn as nn

from d2v_plugin.modules.blocks import Block, BlockStack
from d2v_plugin.modules.decoders import TRANSFORMER_HEADS, ConvDecoder, CrossDecoder, TransformerDecoder


class BlockFactory:
    """
    Args:
        cfg: the model's configuration (``Data2VecMultiConfig``).
    Attributes:
        channels: C, the width of the shared blocks.
    """

    def __init__(self, cfg):
        self.cfg = cfg
        self.channels = cfg.embed_dim
        self.norm = partial(nn.LayerNorm, eps=cfg.norm_eps, elementwise_affine=cfg.norm_affine)

    def block(self, drop_path=0.0, channels=None, heads=None):
        """One block, of the model's width unless told otherwise."""
        cfg = self.cfg
        return Block(
            channels or cfg.embed_dim,
            heads or cfg.num_heads,
            cfg.mlp_ratio,
            make_norm=self.norm,
            norm_first=cfg.layer_norm_first,
            dropout=cfg.encoder_dropout,
            attention_dropout=cfg.attention_dropout,
            activation_dropout=cfg.activation_dropout,
            post_mlp_dropout=cfg.post_mlp_drop,
            drop_path=drop_path,
            end_of_block_targets=cfg.end_of_block_targets,
        )

    def blocks(self, depth, start_drop_path, end_drop_path):
        """``depth`` blocks whose drop path grows evenly from start to end."""
        return [self.block(p) for p in torch.linspace(start_drop_path, end_drop_path, depth).tolist()]

    def prenet(self, cfg, name):
        """The blocks of a modality before the shared ones, with the norm that post-norm blocks start with."""
        norm_first = self.cfg.layer_norm_first
        return BlockStack(
            self.blocks(cfg.prenet_depth, cfg.start_drop_path_rate, cfg.end_drop_path_rate),
            None if norm_first else self.norm(self.channels),
            norm_first,
            cfg.prenet_layerdrop,
            cfg.prenet_dropout,
            name,
        )

    def conv_decoder(self, cfg, side=None):
        """1-D, or for a square of ``side`` patches 2-D; None where the modality has no decoder of its own."""
        return None if cfg is None else ConvDecoder(cfg, self.channels, side)

    def transformer_decoder(self, cfg):
        blocks = [self.block(0.0, cfg.decoder_dim, TRANSFORMER_HEADS) for _ in range(cfg.decoder_layers)]
        stack = BlockStack(blocks, norm_first=self.cfg.layer_norm_first, name="decoder")
        return TransformerDecoder(cfg, self.channels, stack)

    def cross_decoder(self, cfg):
        return CrossDecoder(cfg, self.channels)
