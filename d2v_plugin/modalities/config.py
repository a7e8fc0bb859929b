"""Settings that all modalities have, and those of the decoders. Names and defaults are upstream's."""

from dataclasses import dataclass, field

from omegaconf import II

from d2v_plugin.errors import UserError
from d2v_plugin.ranges import check_amounts, check_rates, check_shares


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


SHARES = ("prenet_layerdrop", "prenet_dropout", "mask_prob", "keep_masked_pct", "mask_dropout", "mask_channel_prob")
RATES = ("start_drop_path_rate", "end_drop_path_rate")
COUNTS = ("mask_length", "mask_channel_length")
AMOUNTS = ("prenet_depth", "num_extra_tokens", "mask_noise_std", "local_grad_mult")
DECODER_COUNTS = ("decoder_dim", "decoder_groups", "decoder_kernel", "decoder_layers", "projection_layers")


def validate_modality(name, cfg):
    """Refuse values that cannot work. Raises ``UserError``."""
    where = f"model.modalities.{name.lower()}"
    check_shares(where, cfg, SHARES)
    check_rates(where, cfg, RATES)
    check_amounts(where, cfg, COUNTS, low=1)
    check_amounts(where, cfg, AMOUNTS)
    if cfg.decoder is not None:
        check_shares(f"{where}.decoder", cfg.decoder, ("input_dropout",))
        check_amounts(f"{where}.decoder", cfg.decoder, DECODER_COUNTS, low=1)
    if cfg.decoder is not None and cfg.decoder.final_layer_norm:
        raise UserError(f"{where}.decoder.final_layer_norm is in no published code of data2vec; set it to false")
    if cfg.learned_alibi and cfg.use_alibi_encoder and not cfg.alibi_max_pos:
        raise UserError(f"{where}.learned_alibi needs alibi_max_pos, the number of positions in its table")
