"""Masked autoencoder, registered as ``mae`` with upstream's fields: the papers' baseline for images.

Source: arXiv:2111.06377. Built of the same parts as data2vec: patches, blocks' attention, masks, kept positions.
"""

from dataclasses import dataclass, field

import torch
import torch.nn as nn
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from omegaconf import II

from d2v_plugin.errors import UserError
from d2v_plugin.method.kept import Masked
from d2v_plugin.method.masking import MaskSource, random_mask, random_masked_count
from d2v_plugin.method.regression import regression_loss
from d2v_plugin.modules.attention import FusedSelfAttention
from d2v_plugin.modules.blocks import Mlp
from d2v_plugin.modules.drop_path import DropPath
from d2v_plugin.modules.init import xavier_init
from d2v_plugin.modules.patches import PatchEmbed, normalised_patches, patchify, sincos_positions, unpatchify

# Fields for other blocks, none of which upstream's own code can run: they import a package it does not ship, pass
# arguments that the class does not take, or return a pair where a tensor is expected.
NOT_BUILT = ("w2v_block", "alt_block", "alt_block2", "alt_attention", "single_qkv", "use_rel_pos_bias")


@dataclass
class MaeConfig(FairseqDataclass):
    input_size: int = field(default=224, metadata={"help": "pixels along a side"})
    in_chans: int = 3
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    mlp_ratio: int = 4
    norm_eps: float = 1e-6

    drop_path_rate: float = 0.0

    mask_ratio: float = field(default=0.75, metadata={"help": "share of patches masked"})
    norm_pix_loss: bool = field(default=True, metadata={"help": "predict pixels normalised within each patch"})

    w2v_block: bool = False
    alt_block: bool = False
    alt_block2: bool = False
    alt_attention: bool = False
    block_dropout: float = 0
    attention_dropout: float = 0
    activation_dropout: float = 0
    layer_norm_first: bool = False

    fused_ln: bool = True
    end_of_block_targets: bool = True

    no_decoder_embed: bool = False
    no_decoder_pos_embed: bool = False
    mask_noise_std: float = field(default=0, metadata={"help": "above 0: noise in place of the learned mask token"})

    single_qkv: bool = False
    use_rel_pos_bias: bool = False
    no_cls: bool = False

    seed: int = II("common.seed")


class VitBlock(nn.Module):
    """Pre-norm attention and feed-forward with residuals, as ViT; state-dict keys as timm's ``Block``."""

    def __init__(self, channels, heads, mlp_ratio, make_norm, drop_path=0.0):
        super().__init__()
        self.norm1 = make_norm(channels)
        self.attn = FusedSelfAttention(channels, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = make_norm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, x):
        """(B, T, C) -> (B, T, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@register_model("mae", dataclass=MaeConfig)
class MaeModel(BaseFairseqModel):
    """Encodes the kept quarter of the patches, and predicts the pixels of the others with a small decoder."""

    def __init__(self, cfg):
        super().__init__()
        _validate(cfg)
        self.cfg = cfg
        extra = int(not cfg.no_cls)
        self.patch_embed = PatchEmbed(cfg.input_size, cfg.patch_size, cfg.in_chans, cfg.embed_dim)
        side, width = self.patch_embed.side, cfg.embed_dim if cfg.no_decoder_embed else cfg.decoder_embed_dim
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, cfg.embed_dim)) if extra else None
        self.pos_embed = _fixed(cfg.embed_dim, side, extra)
        drop_path = torch.linspace(0, cfg.drop_path_rate, cfg.depth).tolist()
        self.blocks = nn.ModuleList(
            VitBlock(cfg.embed_dim, cfg.num_heads, cfg.mlp_ratio, self._norm, p) for p in drop_path
        )
        self.norm = self._norm(cfg.embed_dim)

        self.decoder_embed = None if cfg.no_decoder_embed else nn.Linear(cfg.embed_dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width)) if cfg.mask_noise_std <= 0 else None
        self.decoder_pos_embed = None if cfg.no_decoder_pos_embed else _fixed(width, side, extra)
        self.decoder_blocks = nn.ModuleList(
            VitBlock(width, cfg.decoder_num_heads, cfg.mlp_ratio, self._norm) for _ in range(cfg.decoder_depth)
        )
        self.decoder_norm = self._norm(width)
        self.decoder_pred = nn.Linear(width, cfg.patch_size**2 * cfg.in_chans)
        self.apply(xavier_init)
        for name, parameter in self.named_parameters():
            parameter.param_group = "no_decay" if parameter.dim() == 1 or name.endswith(".bias") else "with_decay"
        self.num_updates = 0
        self.mask_source = MaskSource(cfg.seed)

    @classmethod
    def build_model(cls, cfg, task=None):
        return cls(cfg)

    def _norm(self, channels):
        return nn.LayerNorm(channels, eps=self.cfg.norm_eps)

    def set_num_updates(self, num_updates):
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    def forward(self, imgs, predictions_only=False, id=None, precomputed_mask=None, masked_count=None):
        """Pre-training step, or features.

        Args:
            imgs: (B, in_chans, input_size, input_size).
            predictions_only: return (B, E + L, C), all patches encoded, CLS first unless ``no_cls``.
            id: (B,) int64 sample numbers; masks are then a function of (seed, update, id).
            precomputed_mask: (B, L) bool or 0/1 instead of drawing.
            masked_count: masked patches in each of its rows; spares reading it from the device.
        Returns:
            Dict of ``losses`` (``regression``: squared error, averaged over a patch, summed over masked patches) and
            ``sample_size`` (masked patches).
        """
        patches = self.patch_embed(imgs) + self.pos_embed[:, -(self.patch_embed.side**2) :]
        if predictions_only:
            return self._encode(patches)
        B, L, _ = patches.shape
        if precomputed_mask is None:
            draws = self.mask_source.draws(id, B, self.num_updates, patches.device)
            precomputed_mask = random_mask(draws, L, self.cfg.mask_ratio)
            masked_count = random_masked_count(L, self.cfg.mask_ratio)
        masked = Masked.of(precomputed_mask, masked_count)
        pred = self._decode(self._encode(masked.gather(patches)), masked)
        target = normalised_patches if self.cfg.norm_pix_loss else patchify
        with torch.no_grad():
            pixels = target(imgs.float(), self.cfg.patch_size)
        # no clones: a masked position is its own row of the targets
        regression = regression_loss(pred, pixels, beta=0, scale=1 / pred.shape[-1], target_rows=masked.rows)
        return {
            "losses": {"regression": regression.loss},
            "sample_size": masked.rows.numel(),
            "masked_pct": masked.share,
            "target_var": regression.target_std,
            "pred_var": regression.pred_std,
        }

    def _encode(self, x):
        if self.cls_token is not None:
            cls = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
            x = torch.cat([cls.to(x.dtype), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x if self.norm is None else self.norm(x)

    def _decode(self, x, masked):
        """(B, E + S, C) -> (B * N, pixels of a patch), masked patches in order."""
        x = x if self.decoder_embed is None else self.decoder_embed(x)
        extra = int(self.cls_token is not None)
        shape = *masked.mask.shape, x.shape[-1]
        if self.mask_token is None:
            tokens = x.new_empty(shape).normal_(0, self.cfg.mask_noise_std)
        else:
            tokens = self.mask_token.to(x.dtype).expand(shape)
        x = torch.cat([x[:, :extra], masked.restore(x[:, extra:], tokens)], dim=1)
        x = x if self.decoder_pos_embed is None else x + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        x = x[:, extra:].flatten(0, 1).index_select(0, masked.rows)
        return self.decoder_pred(self.decoder_norm(x))

    def unpatchify(self, patches):
        """(B, L, pixels of a patch) -> (B, in_chans, input_size, input_size)."""
        return unpatchify(patches, self.cfg.patch_size)

    def remove_pretraining_modules(self):
        """Keep the encoder; with ``layer_norm_first`` without its last norm, as upstream."""
        self.decoder_embed = self.decoder_blocks = self.decoder_norm = None
        self.decoder_pos_embed = self.decoder_pred = self.mask_token = None
        if self.cfg.layer_norm_first:
            self.norm = None


def _fixed(channels, side, extra):
    return nn.Parameter(sincos_positions(channels, side, extra).unsqueeze(0), requires_grad=False)


def _validate(cfg):
    on = [name for name in NOT_BUILT if getattr(cfg, name)]
    if on:
        raise UserError(f"model.{on[0]} is not supported (upstream's own code cannot run it either); set it to false")
    decoder_width = "embed_dim" if cfg.no_decoder_embed else "decoder_embed_dim"
    for heads, width in (("num_heads", "embed_dim"), ("decoder_num_heads", decoder_width)):
        if getattr(cfg, width) % getattr(cfg, heads):
            raise UserError(f"{width} {getattr(cfg, width)} is not a multiple of {heads} {getattr(cfg, heads)}")
    patches = (cfg.input_size // max(cfg.patch_size, 1)) ** 2
    if not 0 < int(patches * (1 - cfg.mask_ratio)) < patches:
        raise UserError(
            f"model.mask_ratio {cfg.mask_ratio} leaves nothing or everything of {patches} patches; 0.75 is usual"
        )
