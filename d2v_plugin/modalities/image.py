"""Images: patches with fixed 2-D positions, masked in blocks."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F

from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import block_mask, block_masked_count
from d2v_plugin.modalities.base import FixedPositions, ModalityEncoder
from d2v_plugin.modalities.config import ModalityConfig
from d2v_plugin.modalities.registry import register_modality
from d2v_plugin.modules.patches import PatchEmbed, normalised_patches, sincos_positions
from d2v_plugin.modules.position_bias import DISTANCES


@dataclass
class ImageConfig(ModalityConfig):
    type: str = "IMAGE"
    input_size: int = field(default=224, metadata={"help": "pixels along a side"})
    in_chans: int = 3
    patch_size: int = 16
    embed_dim: int = field(default=768, metadata={"help": "width of the patch projection"})

    alibi_dims: int = 2
    alibi_distance: str = field(default="manhattan", metadata={"help": "manhattan or euclidean"})

    fixed_positions: bool = True

    transformer_decoder: bool = False
    enc_dec_transformer: bool = field(default=False, metadata={"help": "with transformer_decoder: cross-attention"})


@register_modality("IMAGE")
class ImageEncoder(ModalityEncoder):
    """Square images (B, in_chans, input_size, input_size)."""

    config = ImageConfig

    def __init__(self, cfg, factory, task=None):
        self.alibi_dims, self.alibi_distance = cfg.alibi_dims, cfg.alibi_distance
        if cfg.alibi_distance not in DISTANCES:
            raise UserError(f"alibi_distance must be one of {', '.join(DISTANCES)}, got {cfg.alibi_distance!r}")
        if cfg.use_alibi_encoder and cfg.learned_alibi and cfg.alibi_dims == 2:
            _check_table(cfg.alibi_max_pos)
        patches = PatchEmbed(cfg.input_size, cfg.patch_size, cfg.in_chans, cfg.embed_dim)
        side = patches.side
        if cfg.embed_dim != factory.channels:
            patches = nn.Sequential(patches, nn.Linear(cfg.embed_dim, factory.channels))
        fixed = FixedPositions(sincos_positions(factory.channels, side)) if cfg.fixed_positions else None
        super().__init__(
            cfg,
            factory,
            local_encoder=patches,
            project_features=nn.Identity(),
            fixed_positions=fixed,
            decoder=_decoder(cfg, factory, side),
        )
        self.side = side
        self.crosses = cfg.transformer_decoder and cfg.enc_dec_transformer
        if self.crosses and fixed is None:
            raise UserError("enc_dec_transformer asks for masked patches by position; set fixed_positions to true")

    def draw_mask(self, draws, T, lengths):
        cfg = self.modality_cfg
        if cfg.mask_length == 1:
            return super().draw_mask(draws, T, lengths)
        grid = (self.side, self.side)
        mask = block_mask(
            draws,
            grid,
            prob=cfg.mask_prob,
            length=cfg.mask_length,
            adjust=cfg.mask_prob_adjust,
            inverse=cfg.inverse_mask,
            dropout=cfg.mask_dropout,
        )
        return mask, block_masked_count(grid, prob=cfg.mask_prob, inverse=cfg.inverse_mask)

    @torch.no_grad()
    def patchify(self, source):
        return normalised_patches(source, self.modality_cfg.patch_size)

    def decode(self, decoder, x, masked):
        if not (self.crosses and decoder is self.decoder):
            return super().decode(decoder, x, masked)
        cfg = self.modality_cfg
        memory = F.dropout(x, cfg.decoder.input_dropout, self.training)[:, cfg.num_extra_tokens :]
        positions = self.fixed_positional_encoder().expand(len(masked.mask), -1, -1)
        if cfg.decoder.add_positions_all:
            memory = memory + masked.gather(positions)
        at = (masked.rows % masked.mask.shape[1]).view(len(masked.mask), -1, 1)
        return decoder(positions.gather(1, at.expand(-1, -1, positions.shape[-1])), memory)


def _check_table(positions):
    if positions and math.isqrt(positions) ** 2 != positions:
        raise UserError(f"alibi_max_pos must be a square number with alibi_dims 2, got {positions}")


def _decoder(cfg, factory, side):
    if cfg.decoder is None or not cfg.transformer_decoder:
        return factory.conv_decoder(cfg.decoder, side)
    if cfg.enc_dec_transformer:
        return factory.cross_decoder(cfg.decoder)
    return factory.transformer_decoder(cfg.decoder)
