"""Configuration of ``data2vec_vision``: upstream's fields, ours, and what each may hold."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import BeitMasks
from d2v_plugin.ranges import check_amounts, check_rates, check_shares


@dataclass
class Data2VecVisionConfig(FairseqDataclass):
    """Names and defaults are upstream's; the fields from ``project_predictions`` on are ours."""

    layer_scale_init_value: float = field(
        default=1e-4, metadata={"help": "initial factor of each branch's channels; 0 for none"}
    )
    num_mask_patches: int = field(default=75, metadata={"help": "masked patches of an image, or somewhat fewer"})
    min_mask_patches_per_block: int = field(default=16, metadata={"help": "area of a block at least"})
    max_mask_patches_per_block: int = field(default=196, metadata={"help": "area of a block at most"})
    image_size: int = field(default=224, metadata={"help": "pixels along a side"})
    patch_size: int = 16
    in_channels: int = 3

    shared_rel_pos_bias: bool = field(default=True, metadata={"help": "one position bias for all blocks"})

    drop_path: float = field(default=0.1, metadata={"help": "stochastic depth of the last block, growing from 0"})
    attention_dropout: float = 0.0

    depth: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_ratio: int = 4

    loss_beta: float = field(default=0, metadata={"help": "beta of smooth L1; 0 means squared error"})
    loss_scale: Optional[float] = field(
        default=None, metadata={"help": "factor on the loss; default 1/sqrt(dim), 0 or below means 1"}
    )
    average_top_k_layers: int = field(default=8, metadata={"help": "K: how many top layers make the target"})

    end_of_block_targets: bool = field(default=True, metadata={"help": "targets of the block's output, not the FFN's"})
    layer_norm_target_layer: bool = False
    instance_norm_target_layer: bool = False
    batch_norm_target_layer: bool = False
    instance_norm_targets: bool = False
    layer_norm_targets: bool = False

    ema_decay: float = field(default=0.999, metadata={"help": "EMA decay at the start"})
    ema_end_decay: float = field(default=0.9999, metadata={"help": "EMA decay after annealing"})
    ema_anneal_end_step: int = II("optimization.max_update")
    ema_transformer_only: bool = field(default=True, metadata={"help": "the teacher shares the patch embedding"})

    # As in the code that the paper's numbers come from; fairseq's builds the projection and leaves it out.
    project_predictions: bool = field(
        default=False, metadata={"help": "predict through final_proj instead of with the encoder's output itself"}
    )
    # A constant output has a std of 0.001 by the formula that is logged.
    min_target_var: float = field(default=0.01, metadata={"help": "stop when the targets' std falls below this"})
    min_pred_var: float = field(default=0.01, metadata={"help": "stop when the predictions' std falls below this"})
    collapse_guard_updates: int = field(default=5000, metadata={"help": "no such stop up to this update"})
    watch_interval: int = field(default=100, metadata={"help": "updates between two looks of the collapse watch"})


COUNTS = ("image_size", "patch_size", "in_channels", "depth", "embed_dim", "num_heads", "mlp_ratio", "watch_interval")
AMOUNTS = ("layer_scale_init_value", "loss_beta", "min_target_var", "min_pred_var")


def validate(cfg):
    """Refuse values that cannot work, before anything is built. Raises ``UserError``."""
    check_amounts("model", cfg, COUNTS, low=1)
    check_amounts("model", cfg, AMOUNTS)
    check_rates("model", cfg, ("drop_path",))
    check_shares("model", cfg, ("attention_dropout", "ema_decay", "ema_end_decay"))
    if not 1 <= cfg.average_top_k_layers <= cfg.depth:
        raise UserError(
            f"average_top_k_layers {cfg.average_top_k_layers} must lie between 1 and depth, which is {cfg.depth}"
        )
    if cfg.embed_dim % cfg.num_heads:
        raise UserError(f"embed_dim {cfg.embed_dim} is not a multiple of num_heads {cfg.num_heads}")
    if cfg.image_size % cfg.patch_size:
        raise UserError(
            f"image_size {cfg.image_size} is not a multiple of patch_size {cfg.patch_size}; change one of them"
        )
    masks_of(cfg)


def masks_of(cfg):
    """``BeitMasks`` with the settings of a configuration."""
    return BeitMasks(
        cfg.image_size // cfg.patch_size,
        cfg.num_mask_patches,
        cfg.min_mask_patches_per_block,
        cfg.max_mask_patches_per_block,
    )
