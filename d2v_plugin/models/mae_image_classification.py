"""``mae_image_classification``: data2vec 2.0 or MAE under a linear layer, with upstream's fields and keys."""

import enum
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
import torch.nn as nn
from fairseq.dataclass import FairseqDataclass
from fairseq.models import register_model
from omegaconf import II, MISSING

from d2v_plugin.data.images.masks import check_patches
from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.body import load_body, pretrained_path
from d2v_plugin.fine_tuning.image_head import pooled, result
from d2v_plugin.fine_tuning.image_size import fit_positions
from d2v_plugin.fine_tuning.layer_decay import decay_blocks, decay_vit, forget_groups, spare_vectors
from d2v_plugin.models._image_classifier import ImageClassifier, mixing_of
from d2v_plugin.ranges import check_amounts, check_rates, check_shares

MULTI, MAE = "data2vec_multi", "mae"
IMAGE = "modality_encoders.IMAGE."


class PredictionMode(enum.Enum):
    """How the features of an image become one vector, see ``fine_tuning.image_head.pooled``."""

    MEAN_POOLING = 1
    CLS_TOKEN = 2
    LIN_SOFTMAX = 3


@dataclass
class MaeImageClassificationConfig(FairseqDataclass):
    """Names and defaults are upstream's; ``input_size`` is ours."""

    model_path: str = field(default=MISSING, metadata={"help": "checkpoint of pre-training"})
    no_pretrained_weights: bool = field(default=False, metadata={"help": "from scratch, in the same shape"})
    linear_classifier: bool = field(default=False, metadata={"help": "train the head alone"})
    num_classes: int = 1000
    mixup: float = field(default=0.8, metadata={"help": "parameter of mixup's Beta distribution; 0 for none"})
    cutmix: float = field(default=1.0, metadata={"help": "the same of cutmix"})
    label_smoothing: float = 0.1

    drop_path_rate: float = field(default=0.1, metadata={"help": "of the last block; rises from 0 at the first"})
    layer_decay: float = field(default=0.65, metadata={"help": "learning rate of a block over that of the next; 0: 1"})

    mixup_prob: float = field(default=1.0, metadata={"help": "how often a batch is mixed at all"})
    mixup_switch_prob: float = field(default=0.5, metadata={"help": "how often by cutmix, where both are on"})
    mixup_mode: str = field(default="batch", metadata={"help": "one draw for the batch, pair or elem"})

    pretrained_model_args: Any = None
    data: str = II("task.data")

    norm_eps: Optional[float] = field(default=None, metadata={"help": "of the body's norms, instead of its own"})

    remove_alibi: bool = False

    # regularization overwrites
    encoder_dropout: float = 0
    post_mlp_drop: float = 0
    attention_dropout: float = 0
    activation_dropout: float = 0.0
    dropout_input: float = 0.0
    layerdrop: float = 0.0

    prenet_layerdrop: float = 0
    prenet_dropout: float = 0

    use_fc_norm: bool = field(default=True, metadata={"help": "layer norm between pooling and head"})
    prediction_mode: PredictionMode = PredictionMode.MEAN_POOLING

    no_decay_blocks: bool = field(
        default=True, metadata={"help": "vectors in blocks with a rate of their own do not decay, as elsewhere"}
    )

    # The task's; another than in pre-training stretches the positions.
    input_size: Optional[int] = II("task.input_size")


SHARES = ("label_smoothing", "mixup_prob", "mixup_switch_prob", "encoder_dropout", "post_mlp_drop", "attention_dropout")
SHARES += ("activation_dropout", "dropout_input", "layerdrop", "prenet_layerdrop", "prenet_dropout")


@register_model("mae_image_classification", dataclass=MaeImageClassificationConfig)
class MaeImageClassificationModel(ImageClassifier):
    """A pre-trained body, pooling, a norm and a linear layer.

    Mixing needs the epoch and the samples' numbers, so the task does it, as ``mixing`` says, and passes mixed labels.
    """

    def __init__(self, cfg):
        super().__init__()
        check_shares("model", cfg, SHARES)
        check_rates("model", cfg, ("drop_path_rate",))
        check_amounts("model", cfg, ("mixup", "cutmix", "layer_decay"))
        check_amounts("model", cfg, ("num_classes",), low=1)
        self.cfg, self.num_classes = cfg, cfg.num_classes
        self.mixing = mixing_of(cfg, cfg.mixup_prob, cfg.mixup_switch_prob, cfg.mixup_mode)
        body = load_body(
            pretrained_path(cfg, cfg.pretrained_model_args),
            cfg.pretrained_model_args,
            kinds=(MULTI, MAE),
            modality="IMAGE",
            weights=not cfg.no_pretrained_weights,
            adjust=lambda model_cfg: adjust_body(model_cfg, cfg),
            before_load=self._before_load,
        )
        cfg.pretrained_model_args = body.cfg
        self.d2v_multi, self.model = body.name == MULTI, body.model
        if cfg.prediction_mode == PredictionMode.CLS_TOKEN and not self._extra_tokens:
            raise UserError(
                "model.prediction_mode=CLS_TOKEN, and the pre-trained model has no CLS token; set it to MEAN_POOLING"
            )
        if cfg.linear_classifier:
            self.model.requires_grad_(False)
        self.fc_norm = nn.LayerNorm(body.dim, eps=1e-6) if cfg.use_fc_norm else None
        self.head = nn.Linear(body.dim, cfg.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self._mark_parameters()

    def _before_load(self, model, weights):
        if self.cfg.remove_alibi:
            for name in ("alibi_bias", "alibi_scale"):
                weights.pop(IMAGE + name, None)
        # files of early code have these under another name, or at all
        weights.pop(IMAGE + "encoder_mask", None)
        if IMAGE + "positional_encoder.pos_embed" in weights:
            early = weights.pop(IMAGE + "positional_encoder.pos_embed")
            weights[IMAGE + "fixed_positional_encoder.positions"] = early
        fit_positions(model, weights)

    @property
    def _extra_tokens(self):
        if self.d2v_multi:
            return self.model.modality_encoders["IMAGE"].modality_cfg.num_extra_tokens
        return int(self.model.cls_token is not None)

    def _mark_parameters(self):
        """What optimisers read: weight decay and rates by layer."""
        forget_groups(self.model)
        spare_vectors(self.fc_norm)
        spare_vectors(self.head)
        if self.d2v_multi:
            prenet = self.model.modality_encoders["IMAGE"].context_encoder.blocks
            blocks = [*prenet, *self.model.blocks]
            decay_blocks(self.model, blocks, self.cfg.layer_decay, keep_exemption=self.cfg.no_decay_blocks)
        else:
            decay_vit(self.model.named_parameters(), len(self.model.blocks), self.cfg.layer_decay)

    def forward(self, imgs, labels=None):
        """Classify.

        Args:
            imgs: (B, 3, input_size, input_size), normalised.
            labels: (B,) int64, or (B, num_classes) where the task has mixed them.
        Returns:
            Without labels (B, num_classes) logits; else what ``fine_tuning.image_head.result`` says.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.cfg.linear_classifier):
            x = self.model_forward(imgs)
        x = pooled(x, self.cfg.prediction_mode.name)
        logits = self.head(x if self.fc_norm is None else self.fc_norm(x))
        if labels is None:
            return logits
        return result(logits, labels, self.training, self.cfg.label_smoothing)

    def model_forward(self, imgs):
        """Features (B, L, C) of the patches; with ``CLS_TOKEN`` CLS comes before them."""
        patches_only = self.cfg.prediction_mode != PredictionMode.CLS_TOKEN
        if self.d2v_multi:
            return self.model.extract_features(imgs, mode="IMAGE", remove_extra_tokens=patches_only)["x"]
        x = self.model(imgs, predictions_only=True)
        return x[:, self._extra_tokens :] if patches_only else x


def _check_alibi(image, cfg):
    if image.get("use_alibi_encoder") and image.get("learned_alibi") and not cfg.remove_alibi:
        raise UserError(
            f"task.input_size={cfg.input_size} and the pre-trained model has a learned table of ALiBi biases for "
            f"{image.input_size}; set task.input_size={image.input_size}, or model.remove_alibi=true"
        )


def adjust_body(model_cfg, cfg):
    """Change the configuration of pre-training into that of fine-tuning."""
    multi = "modalities" in model_cfg
    image = model_cfg.modalities.image if multi else model_cfg
    if cfg.input_size is not None:
        check_patches(cfg.input_size, image.patch_size)
        if multi and cfg.input_size != image.input_size:
            _check_alibi(image, cfg)
        image.input_size = cfg.input_size
    if cfg.norm_eps is not None:
        model_cfg.norm_eps = cfg.norm_eps
    if not multi:
        model_cfg.drop_path_rate = cfg.drop_path_rate
        model_cfg.block_dropout = cfg.encoder_dropout
        model_cfg.attention_dropout = cfg.attention_dropout
        model_cfg.activation_dropout = cfg.activation_dropout
        return
    depth, prenet = model_cfg.depth, image.prenet_depth
    # as upstream: the slope is that of the shared blocks, in which the prenet's count once more
    rates = torch.linspace(0, cfg.drop_path_rate, depth, dtype=torch.float64).tolist()
    image.start_drop_path_rate, image.end_drop_path_rate = 0.0, rates[min(prenet, depth) - 1]
    model_cfg.start_drop_path_rate, model_cfg.end_drop_path_rate = rates[min(prenet, depth - 1)], rates[-1]
    if cfg.remove_alibi:
        image.use_alibi_encoder = False
    for name in ("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout", "dropout_input"):
        model_cfg[name] = getattr(cfg, name)
    model_cfg.layerdrop = cfg.layerdrop
    image.prenet_layerdrop, image.prenet_dropout = cfg.prenet_layerdrop, cfg.prenet_dropout
