"""Configuration of ``data2vec_audio``: upstream's fields, ours, and what each may hold."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.models.wav2vec import Wav2Vec2Config
from omegaconf import II

from d2v_plugin.errors import UserError
from d2v_plugin.ranges import check_amounts, check_shares


@dataclass
class Data2VecAudioConfig(Wav2Vec2Config):
    """Upstream's fields; those of wav2vec 2.0 that data2vec does not use are accepted and ignored."""

    loss_beta: float = field(default=0, metadata={"help": "beta of smooth L1; 0 means squared error"})
    loss_scale: Optional[float] = field(default=None, metadata={"help": "factor on the loss; default 1/sqrt(dim)"})
    average_top_k_layers: int = field(default=8, metadata={"help": "K: how many top layers make the target"})

    layer_norm_target_layer: bool = False
    instance_norm_target_layer: bool = False
    instance_norm_targets: bool = False
    layer_norm_targets: bool = False
    batch_norm_target_layer: bool = False
    group_norm_target_layer: bool = False

    length_aware_targets: bool = field(
        default=False, metadata={"help": "target statistics over each recording's own frames, not its padding"}
    )

    ema_decay: float = field(default=0.999, metadata={"help": "EMA decay at the start"})
    ema_end_decay: float = field(default=0.9999, metadata={"help": "EMA decay after annealing"})
    ema_anneal_end_step: int = II("optimization.max_update")
    ema_transformer_only: bool = field(default=True, metadata={"help": "the teacher shares the feature extractor"})
    ema_layers_only: bool = field(
        default=True, metadata={"help": "the teacher shares the feature extractor and the positional convolution"}
    )
    max_update: int = II("optimization.max_update")

    min_target_var: float = field(default=0.1, metadata={"help": "stop when the targets' std falls below this"})
    min_pred_var: float = field(default=0.01, metadata={"help": "stop when the predictions' std falls below this"})
    collapse_guard_updates: int = field(default=5000, metadata={"help": "no such stop up to this update"})
    # Named in upstream's AudioSet recipe, in no published version of its code.
    self_attn_norm_type: str = field(default="layer", metadata={"help": "layer, or deepnorm (arXiv:2203.00555)"})
    final_norm_type: str = field(default="layer", metadata={"help": "the same value as self_attn_norm_type"})
    conv_init: str = field(
        default="random", metadata={"help": "random, or mel: the first convolution starts as a filterbank (16 kHz)"}
    )
    watch_interval: int = field(default=100, metadata={"help": "updates between two looks of the collapse watch"})


SHARES = ("mask_prob", "mask_channel_prob", "mask_dropout", "dropout", "attention_dropout", "activation_dropout")
SHARES += ("dropout_input", "encoder_layerdrop", "ema_decay", "ema_end_decay")
COUNTS = ("mask_length", "mask_channel_length", "conv_pos", "conv_pos_groups", "watch_interval")
AMOUNTS = ("loss_beta", "mask_other", "mask_min_space", "min_target_var", "min_pred_var", "feature_grad_mult")


def validate(cfg):
    """Refuse values that cannot work, before anything is built. Raises ``UserError``."""
    if not 1 <= cfg.average_top_k_layers <= cfg.encoder_layers:
        raise UserError(
            f"average_top_k_layers {cfg.average_top_k_layers} must lie between 1 and encoder_layers, "
            f"which is {cfg.encoder_layers}"
        )
    if str(cfg.layer_type) != "transformer":
        raise UserError(f"layer_type {cfg.layer_type} is not part of data2vec; set it to transformer")
    if (cfg.self_attn_norm_type, cfg.final_norm_type) not in (("layer", "layer"), ("deepnorm", "deepnorm")):
        raise UserError(
            "self_attn_norm_type and final_norm_type must both be layer or both be deepnorm, "
            f"got {cfg.self_attn_norm_type!r} and {cfg.final_norm_type!r}"
        )
    if cfg.conv_init not in ("random", "mel"):
        raise UserError(f"conv_init must be random or mel, got {cfg.conv_init!r}")
    check_shares("model", cfg, SHARES)
    check_amounts("model", cfg, COUNTS, low=1)
    check_amounts("model", cfg, AMOUNTS)
    if cfg.encoder_embed_dim % cfg.encoder_attention_heads:
        raise UserError(
            f"encoder_embed_dim {cfg.encoder_embed_dim} is not a multiple of encoder_attention_heads "
            f"{cfg.encoder_attention_heads}"
        )
    if cfg.encoder_embed_dim % cfg.conv_pos_groups:
        raise UserError(
            f"conv_pos_groups {cfg.conv_pos_groups} must divide encoder_embed_dim, which is {cfg.encoder_embed_dim}"
        )
