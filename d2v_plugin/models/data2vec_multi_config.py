"""Configuration of ``data2vec_multi``: upstream's tree, ours, and what each field may hold."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from d2v_plugin.errors import UserError
from d2v_plugin.modalities import encoder_class, modalities_config
from d2v_plugin.modalities.config import DecoderConfig, validate_modality
from d2v_plugin.ranges import check_amounts, check_range, check_rates, check_shares


@dataclass
class Data2VecMultiConfig(FairseqDataclass):
    """Names and defaults are upstream's; the fields at the end are ours."""

    loss_beta: float = field(default=0, metadata={"help": "beta of smooth L1; 0 means squared error"})
    loss_scale: Optional[float] = field(default=None, metadata={"help": "factor on the loss; default 1/sqrt(dim)"})

    depth: int = field(default=8, metadata={"help": "blocks that all modalities share"})
    start_drop_path_rate: float = 0
    end_drop_path_rate: float = 0
    num_heads: int = 12
    norm_eps: float = 1e-6
    norm_affine: bool = True
    encoder_dropout: float = 0.1
    post_mlp_drop: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    dropout_input: float = 0.0
    layerdrop: float = 0.0
    embed_dim: int = 768
    mlp_ratio: float = 4
    layer_norm_first: bool = False

    average_top_k_layers: int = field(default=8, metadata={"help": "K: how many top layers make the target"})
    end_of_block_targets: bool = field(default=False, metadata={"help": "targets of the block's output, not the FFN's"})

    clone_batch: int = field(default=1, metadata={"help": "M: masks per sample, which share one pass of the teacher"})

    layer_norm_target_layer: bool = False
    batch_norm_target_layer: bool = False
    instance_norm_target_layer: bool = False
    instance_norm_targets: bool = False
    layer_norm_targets: bool = False

    ema_decay: float = field(default=0.999, metadata={"help": "EMA decay at the start"})
    ema_same_dtype: bool = field(default=True, metadata={"help": "the teacher runs in the student's dtype, else fp32"})
    log_norms: bool = field(default=True, metadata={"help": "log model_norm and ema_norm"})
    ema_end_decay: float = field(default=0.9999, metadata={"help": "EMA decay after annealing"})
    ema_anneal_end_step: int = II("optimization.max_update")

    ema_encoder_only: bool = field(default=True, metadata={"help": "the teacher is the shared blocks alone"})

    max_update: int = II("optimization.max_update")

    modalities: Any = field(default_factory=modalities_config)

    shared_decoder: Optional[DecoderConfig] = None

    min_target_var: float = field(default=0.1, metadata={"help": "stop when the targets' std falls below this"})
    min_pred_var: float = field(default=0.01, metadata={"help": "stop when the predictions' std falls below this"})

    # a name and not upstream's enumeration, so that modalities can be added
    supported_modality: Optional[str] = field(default=None, metadata={"help": "AUDIO, IMAGE, TEXT or a registered one"})
    mae_init: bool = field(default=False, metadata={"help": "linear layers start Xavier-uniform, as MAE"})

    seed: int = II("common.seed")

    skip_ema: bool = field(default=False, metadata={"help": "no teacher, for fine-tuning"})

    cls_loss: float = field(default=0, metadata={"help": "weight: the last extra token predicts the mean target"})
    recon_loss: float = field(default=0, metadata={"help": "weight: predict normalised pixels"})
    d2v_loss: float = field(default=1, metadata={"help": "weight: predict the teacher's targets"})

    decoder_group: bool = field(default=False, metadata={"help": "decoder parameters form optimiser group 'decoder'"})

    length_aware_targets: bool = field(
        default=False, metadata={"help": "target statistics over each sample's own positions, not its padding"}
    )
    collapse_guard_updates: int = field(default=5000, metadata={"help": "no stop for low variance up to this update"})
    watch_interval: int = field(default=100, metadata={"help": "updates between two looks of the collapse watch"})


SHARES = ("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout", "dropout_input", "layerdrop")
SHARES += ("ema_decay", "ema_end_decay")
RATES = ("start_drop_path_rate", "end_drop_path_rate")
COUNTS = ("depth", "num_heads", "embed_dim", "clone_batch", "watch_interval")
AMOUNTS = ("loss_beta", "min_target_var", "min_pred_var", "cls_loss", "recon_loss", "d2v_loss", "mlp_ratio")


def validate(cfg, modalities):
    """Refuse values that cannot work, before anything is built. Raises ``UserError``."""
    check_shares("model", cfg, SHARES)
    check_rates("model", cfg, RATES)
    check_amounts("model", cfg, COUNTS, low=1)
    check_amounts("model", cfg, AMOUNTS)
    if not 1 <= cfg.average_top_k_layers <= cfg.depth:
        raise UserError(
            f"average_top_k_layers {cfg.average_top_k_layers} must lie between 1 and depth, which is {cfg.depth}"
        )
    if cfg.embed_dim % cfg.num_heads:
        raise UserError(f"embed_dim {cfg.embed_dim} is not a multiple of num_heads {cfg.num_heads}")
    for name in modalities:
        encoder_class(name)
        settings = getattr(cfg.modalities, name.lower(), None)
        if settings is None:
            raise UserError(f"model.modalities has no settings for {name}; add model.modalities.{name.lower()}")
        validate_modality(name, settings)
        if settings.use_alibi_encoder:
            check_range(f"model.modalities.{name.lower()}.num_alibi_heads", settings.num_alibi_heads, 1, cfg.num_heads)
        _validate_losses(cfg, name, settings)


def _validate_losses(cfg, name, settings):
    if cfg.skip_ema:
        return
    if cfg.d2v_loss == cfg.cls_loss == cfg.recon_loss == 0:
        raise UserError("d2v_loss, cls_loss and recon_loss are all 0, so nothing would be learned; set one above 0")
    if settings.decoder is None and cfg.shared_decoder is None:
        raise UserError(f"modality {name} has no decoder; set its decoder, or model.shared_decoder")
    if cfg.cls_loss > 0 and settings.num_extra_tokens < 1:
        raise UserError(f"cls_loss needs model.modalities.{name.lower()}.num_extra_tokens of at least 1, got 0")
    if cfg.recon_loss > 0:
        if name != "IMAGE":
            raise UserError(f"recon_loss predicts pixels, so it goes with IMAGE alone; set it to 0 for {name}")
        pixels = settings.patch_size**2 * settings.in_chans
        if pixels != cfg.embed_dim:
            raise UserError(
                f"recon_loss needs embed_dim equal to the pixels of a patch (patch_size**2 * in_chans = {pixels}), "
                f"got {cfg.embed_dim}"
            )
