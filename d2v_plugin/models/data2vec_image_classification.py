"""``data2vec_image_classification``: data2vec 1.0 under a linear layer, with upstream's fields and state-dict keys."""

from dataclasses import dataclass, field
from typing import Any, Optional

import torch.nn as nn
from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from omegaconf import II, MISSING

from d2v_plugin.data.images.masks import check_patches
from d2v_plugin.fine_tuning.body import load_body, pretrained_path
from d2v_plugin.fine_tuning.image_head import pooled, result
from d2v_plugin.fine_tuning.image_size import fit_positions
from d2v_plugin.fine_tuning.layer_decay import decay_vit, spare_vectors
from d2v_plugin.models._image_classifier import ImageClassifier, mixing_of
from d2v_plugin.ranges import check_amounts, check_rates, check_shares

HEAD_SCALE = 1e-3  # on the head's initial values


@dataclass
class Data2VecImageClassificationConfig(FairseqDataclass):
    """Names and defaults are upstream's; the fields from ``mixup_prob`` on are ours, and change nothing by default."""

    model_path: str = field(default=MISSING, metadata={"help": "checkpoint of pre-training"})
    no_pretrained_weights: bool = field(default=False, metadata={"help": "from scratch, in the same shape"})
    num_classes: int = 1000
    mixup: float = field(default=0.8, metadata={"help": "parameter of mixup's Beta distribution; 0 for none"})
    cutmix: float = field(default=1.0, metadata={"help": "the same of cutmix"})
    label_smoothing: float = 0.1

    pretrained_model_args: Any = None
    data: str = II("task.data")

    mixup_prob: float = field(default=1.0, metadata={"help": "how often a batch is mixed at all"})
    mixup_switch_prob: float = field(default=0.5, metadata={"help": "how often by cutmix, where both are on"})
    mixup_mode: str = field(default="batch", metadata={"help": "one draw for the batch, pair or elem"})
    drop_path_rate: Optional[float] = field(default=None, metadata={"help": "instead of pre-training's"})
    attention_dropout: Optional[float] = field(default=None, metadata={"help": "instead of pre-training's"})
    layer_decay: float = field(default=0.0, metadata={"help": "learning rate of a block over that of the next; 0: 1"})
    # Upstream's encoder leaves CLS out, and its classifier then leaves out one more, the upper left patch.
    pool_all_patches: bool = field(
        default=False, metadata={"help": "the mean of all patches; false leaves the first one out, as upstream does"}
    )
    # The task's; another than in pre-training stretches the positions.
    input_size: Optional[int] = II("task.input_size")


@register_model("data2vec_image_classification", dataclass=Data2VecImageClassificationConfig)
class Data2VecImageClassificationModel(ImageClassifier):
    """A pre-trained ``data2vec_vision``, the mean over patches, a norm and a linear layer.

    Mixing needs the epoch and the samples' numbers, so the task does it, as ``mixing`` says, and passes mixed labels.
    """

    def __init__(self, cfg):
        super().__init__()
        check_shares("model", cfg, ("label_smoothing", "mixup_prob", "mixup_switch_prob"))
        check_amounts("model", cfg, ("mixup", "cutmix", "layer_decay"))
        check_amounts("model", cfg, ("num_classes",), low=1)
        if cfg.drop_path_rate is not None:
            check_rates("model", cfg, ("drop_path_rate",))
        self.cfg, self.num_classes = cfg, cfg.num_classes
        self.mixing = mixing_of(cfg, cfg.mixup_prob, cfg.mixup_switch_prob, cfg.mixup_mode)
        body = load_body(
            pretrained_path(cfg, cfg.pretrained_model_args),
            cfg.pretrained_model_args,
            kinds=("data2vec_vision",),
            weights=not cfg.no_pretrained_weights,
            adjust=lambda model_cfg: adjust_body(model_cfg, cfg),
            before_load=fit_positions,
        )
        cfg.pretrained_model_args = body.cfg
        self.model = body.model
        self.fc_norm = nn.LayerNorm(body.dim)
        self.head = nn.Linear(body.dim, cfg.num_classes)
        self.head.weight.data.mul_(HEAD_SCALE)
        self.head.bias.data.mul_(HEAD_SCALE)
        self._mark_parameters()

    def _mark_parameters(self):
        """What ``d2v_adamw`` reads: weight decay, and rates by layer as BEiT has them.

        The body has marked its own vectors and its CLS token. The position bias that blocks share has the full rate.
        """
        spare_vectors(self.fc_norm)
        spare_vectors(self.head)
        if self.cfg.layer_decay > 0:
            names = ((_vit_name(name), parameter) for name, parameter in self.model.named_parameters())
            decay_vit(names, len(self.model.encoder.blocks), self.cfg.layer_decay)
            self.model.cls_emb.optim_overrides["optimizer"]["weight_decay_scale"] = 0

    def forward(self, img, label=None):
        """Classify.

        Args:
            img: (B, 3, input_size, input_size), normalised.
            label: (B,) int64, or (B, num_classes) where the task has mixed them.
        Returns:
            Without labels (B, num_classes) logits; else what ``fine_tuning.image_head.result`` says.
        """
        x = self.model(img, mask=False)
        x = x if self.cfg.pool_all_patches else x[:, 1:]
        logits = self.head(self.fc_norm(pooled(x, "MEAN_POOLING")))
        return logits if label is None else result(logits, label, self.training, self.cfg.label_smoothing)


def adjust_body(model_cfg, cfg):
    """Change the configuration of pre-training into that of fine-tuning."""
    if cfg.input_size is not None and cfg.input_size != model_cfg.image_size:
        check_patches(cfg.input_size, model_cfg.patch_size)
        model_cfg.image_size = cfg.input_size
        # masks that fit, though none will be drawn
        model_cfg.num_mask_patches = 1
        model_cfg.min_mask_patches_per_block = model_cfg.max_mask_patches_per_block = 1
    if cfg.drop_path_rate is not None:
        model_cfg.drop_path = cfg.drop_path_rate
    if cfg.attention_dropout is not None:
        model_cfg.attention_dropout = cfg.attention_dropout


def _vit_name(name):
    """As ``decay_vit`` knows it."""
    return "cls_token" if name == "cls_emb" else name.replace("encoder.blocks.", "blocks.", 1)
