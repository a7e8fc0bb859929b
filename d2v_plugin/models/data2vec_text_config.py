"""Configuration of ``data2vec_text``: upstream's fields, ours, and what each may hold."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer.transformer_config import DecoderConfig, EncDecBaseConfig, QuantNoiseConfig
from omegaconf import II

from d2v_plugin.errors import UserError
from d2v_plugin.ranges import check_amounts, check_rates, check_shares


@dataclass
class DecoderFields(DecoderConfig):
    """fairseq's, accepted and ignored: there is no decoder."""

    # fairseq's refer to model.decoder, and this one is model.transformer.decoder
    input_dim: int = II(".embed_dim")
    output_dim: int = II(".embed_dim")


@dataclass
class TransformerFields(TransformerConfig):
    """fairseq's fields; those that do not concern an encoder are accepted and ignored."""

    encoder: EncDecBaseConfig = field(default_factory=EncDecBaseConfig)
    decoder: DecoderFields = field(default_factory=DecoderFields)
    quant_noise: QuantNoiseConfig = field(default_factory=QuantNoiseConfig)


@dataclass
class Data2VecTextConfig(FairseqDataclass):
    """Upstream's fields, then ours."""

    max_positions: int = II("task.tokens_per_sample")
    head_layers: int = field(default=1, metadata={"help": "linear layers of the regression head"})
    transformer: TransformerFields = field(default_factory=TransformerFields)
    load_checkpoint_heads: bool = field(
        default=False, metadata={"help": "take over the classification heads of a checkpoint that is loaded"}
    )

    loss_beta: float = field(default=0, metadata={"help": "beta of smooth L1; 0 means squared error"})
    loss_scale: Optional[float] = field(
        default=None, metadata={"help": "factor on the loss; by default, and for 0 and less, 1/sqrt(dim)"}
    )
    average_top_k_layers: int = field(default=8, metadata={"help": "K: how many top layers make the target"})

    layer_norm_target_layer: bool = False
    instance_norm_target_layer: bool = False
    batch_norm_target_layer: bool = False
    instance_norm_targets: bool = False
    layer_norm_targets: bool = False

    ema_decay: float = field(default=0.999, metadata={"help": "EMA decay at the start"})
    ema_end_decay: float = field(default=0.9999, metadata={"help": "EMA decay after annealing"})
    ema_anneal_end_step: int = II("optimization.max_update")
    ema_transformer_layers_only: bool = field(
        default=True, metadata={"help": "the teacher shares the embeddings of tokens and positions, and their norm"}
    )

    length_aware_targets: bool = field(
        default=False, metadata={"help": "target statistics over each sequence's own tokens, not its padding"}
    )
    # lower than for speech: layer-norm targets have a common part, which leaves less to vary from token to token
    min_target_var: float = field(default=0.01, metadata={"help": "stop when the targets' std falls below this"})
    min_pred_var: float = field(default=0.01, metadata={"help": "stop when the predictions' std falls below this"})
    collapse_guard_updates: int = field(default=5000, metadata={"help": "no such stop up to this update"})
    watch_interval: int = field(default=100, metadata={"help": "updates between two looks of the collapse watch"})


SHARES = ("ema_decay", "ema_end_decay")
AMOUNTS = ("loss_beta", "min_target_var", "min_pred_var")
COUNTS = ("head_layers", "watch_interval")
RATES = ("dropout", "attention_dropout", "activation_dropout", "relu_dropout")
SIZES = ("embed_dim", "ffn_embed_dim", "layers", "attention_heads")


def validate(cfg):
    """Refuse values that cannot work, before anything is built. Raises ``UserError``."""
    transformer, encoder = cfg.transformer, cfg.transformer.encoder
    check_shares("model", cfg, SHARES)
    check_amounts("model", cfg, AMOUNTS)
    check_amounts("model", cfg, COUNTS, low=1)
    check_rates("model.transformer", transformer, RATES)
    check_shares("model.transformer.encoder", encoder, ("layerdrop",))
    check_amounts("model.transformer", transformer, ("max_source_positions",), low=1)
    check_amounts("model.transformer.encoder", encoder, SIZES, low=1)
    if encoder.embed_dim % encoder.attention_heads:
        raise UserError(
            f"model.transformer.encoder.embed_dim={encoder.embed_dim} is not a multiple of attention_heads, which is "
            f"{encoder.attention_heads}"
        )
    for name, asked, instead in (
        ("offload_activations", transformer.offload_activations, "checkpoint_activations=true saves memory"),
        ("quant_noise.pq", transformer.quant_noise.pq, "set it to 0"),
        ("quant_noise.scalar", transformer.quant_noise.scalar, "set it to 0"),
        ("encoder.xformers_att_config", encoder.xformers_att_config, "torch picks the fastest attention by itself"),
    ):
        if asked:
            raise UserError(f"model.transformer.{name} is not part of data2vec; leave it out ({instead})")


def check_layers(cfg):
    """Refuse a K that the network lacks layers for; fine-tuning does not look at it. Raises ``UserError``."""
    layers = cfg.transformer.encoder.layers
    if not 1 <= cfg.average_top_k_layers <= layers:
        raise UserError(
            f"model.average_top_k_layers={cfg.average_top_k_layers} must lie between 1 and "
            f"model.transformer.encoder.layers, which is {layers}"
        )
