"""Settings that all modalities have, and those of the decoders. Names and defaults are upstream's."""

import math
from dataclasses import dataclass, field

from omegaconf import II

from d2v_plugin.errors import UserError


@dataclass
class DecoderConfig:
    """From kept positions to predictions at masked ones."""

    decoder_dim: int = 384
    decoder_groups: int = 16
    decoder_kernel: int = 5
    decoder_layers: int = 5
    input_dropout: float = 0.1

    add_positions_masked: bool = field(default=False, metadata={"help": "fixed positions added to mask tokens"})
    add_positions_all: bool = field(default=False, metadata={"help": "fixed positions added to the decoder's input"})

    decoder_residual: bool = True
    projection_layers: int = 1
    projection_ratio: float = 2.0

    # named in upstream's recipe for ViT-H/14, in no published version of its code
    final_layer_norm: bool = field(default=False, metadata={"help": "accepted as false"})


@dataclass
class ModalityConfig:
    """Prenet, masks and ALiBi of one modality."""

    type: str = ""
    prenet_depth: int = field(default=4, metadata={"help": "blocks of this modality before the shared ones"})
    prenet_layerdrop: float = 0.0
    prenet_dropout: float = 0.0
    start_drop_path_rate: float = 0.0
    end_drop_path_rate: float = 0.0

    num_extra_tokens: int = field(default=0, metadata={"help": "learned tokens before the sequence, such as CLS"})
    init_extra_token_zero: bool = True

    mask_noise_std: float = field(default=0.01, metadata={"help": "standard deviation of the Gaussian mask tokens"})
    mask_prob_min: float | None = field(default=None, metadata={"help": "draw mask_prob from this on, per batch"})
    mask_prob: float = field(default=0.7, metadata={"help": "R: share of positions masked"})
    inverse_mask: bool = field(default=False, metadata={"help": "draw in blocks what is kept, not what is masked"})
    mask_prob_adjust: float = field(default=0.0, metadata={"help": "A: draw more blocks to allow for their overlap"})
    keep_masked_pct: float = field(default=0.0, metadata={"help": "share of the masked that the encoder sees anyway"})

    mask_length: int = field(default=5, metadata={"help": "B: length of a span or side of a block; 1 for single ones"})
    add_masks: bool = False
    remove_masks: bool = False
    mask_dropout: float = 0.0
    encoder_zero_mask: bool = field(default=True, metadata={"help": "zeros in place of masked positions, else noise"})

    mask_channel_prob: float = 0.0
    mask_channel_length: int = 64

    ema_local_encoder: bool = field(default=False, metadata={"help": "the teacher has its own local encoder"})
    local_grad_mult: float = 1.0

    use_alibi_encoder: bool = False
    alibi_scale: float = 1.0
    learned_alibi: bool = field(default=False, metadata={"help": "a learned table of biases, alibi_max_pos square"})
    alibi_max_pos: int | None = None
    learned_alibi_scale: bool = False
    learned_alibi_scale_per_head: bool = False
    learned_alibi_scale_per_layer: bool = False

    num_alibi_heads: int = II("model.num_heads")
    model_depth: int = II("model.depth")

    decoder: DecoderConfig | None = field(default_factory=DecoderConfig)


SHARES = ("prenet_layerdrop", "prenet_dropout", "start_drop_path_rate", "end_drop_path_rate", "mask_prob")
SHARES += ("keep_masked_pct", "mask_dropout", "mask_channel_prob")
COUNTS = {"mask_length": 1, "mask_channel_length": 1, "prenet_depth": 0, "num_extra_tokens": 0, "mask_noise_std": 0}
COUNTS |= {"local_grad_mult": 0}


def validate_modality(name, cfg):
    """Refuse values that cannot work. Raises ``UserError``."""
    where = f"model.modalities.{name.lower()}"
    for key in SHARES:
        if not 0 <= getattr(cfg, key) <= 1:
            raise UserError(f"{where}.{key} must be between 0 and 1, got {getattr(cfg, key)}")
    for key, low in COUNTS.items():
        if not low <= getattr(cfg, key) < math.inf:
            raise UserError(f"{where}.{key} must be at least {low}, got {getattr(cfg, key)}")
    if cfg.decoder is not None and cfg.decoder.final_layer_norm:
        raise UserError(f"{where}.decoder.final_layer_norm is in no published code of data2vec; set it to false")
    if cfg.learned_alibi and cfg.use_alibi_encoder and not cfg.alibi_max_pos:
        raise UserError(f"{where}.learned_alibi needs alibi_max_pos, the number of positions in its table")
