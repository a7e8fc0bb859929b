"""What the two tasks that classify images share: labelled images, augmented on the device, and accuracies."""

import dataclasses
import logging
import math
from dataclasses import dataclass, field
from typing import Any, Dict, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II, OmegaConf

from d2v_plugin.data.images.erase import RandomErase
from d2v_plugin.data.images.geometry import CropRule
from d2v_plugin.data.images.labelled import LabelledImageDataset, numbered, train_classes
from d2v_plugin.data.images.randaugment import RandAugment
from d2v_plugin.data.images.source import find_images
from d2v_plugin.errors import UserError
from d2v_plugin.ranges import check_shares
from d2v_plugin.tasks._fields import check_data, elsewhere, train_subset
from d2v_plugin.tasks._image_task import ImageFields, ImageTask, check_image_fields

logger = logging.getLogger(__name__)

KINDS = ("imagefolder", "tar")
CROPS = ("random", "shift", "whole")
SHIFT = 4  # pixels
CLASSES = "classes"  # in the state that checkpoints keep
# logged counts -> what they become
ACCURACIES = {"_correct1": "accuracy", "_correct5": "top5"}


@dataclass
class ImageClassificationFields(ImageFields):
    """Of upstream's are ``data``, ``input_size``, ``local_cache_path``, ``rebuild_batches`` and the normalisation."""

    dataset_type: str = field(
        default="imagefolder",
        metadata={
            "help": "imagefolder: <data>/<split>/<class>/*.jpg, or shards where there are no images; "
            "tar: <data>/<split>/*.tar or <data>/<split>-*.tar with NAME.cls beside each image"
        },
    )
    crop: Optional[str] = field(
        default=None,
        metadata={
            "help": "in training: random, 8 to 100 percent of the area; shift, the whole image moved by up to 4 "
            "pixels; whole. Validation sees the middle with random, else the whole. Default random, in "
            "image_classification shift for an input_size of up to 32"
        },
    )
    horizontal_flip: float = field(default=0.5, metadata={"help": "how many images are mirrored in training"})
    auto_augment: str = field(
        default="rand-m9-mstd0.5-inc1", metadata={"help": "RandAugment's policy in timm's spelling; '' for none"}
    )
    random_erase: float = field(default=0.25, metadata={"help": "how many images get a rectangle of noise"})
    # for check_optimizer
    optimizer: Any = II("optimizer._name")
    fp16: bool = II("common.fp16")
    fp16_no_flatten_grads: bool = II("common.fp16_no_flatten_grads")


class ImageClassification(ImageTask):
    """Batches of labelled images, augmented in training, and accuracies in validation.

    Differs from upstream's tasks in that unusable images are skipped and counted, tar shards are read, classes keep
    their numbers in every split, and all that is random is a function of the seed, the epoch and the sample.
    """

    image_key, label_key = "imgs", "labels"
    share_up_to = 224  # validation sees the middle 224/256 of the image up to this input_size
    shift_up_to = 0  # up to this input_size images are shifted and not cropped

    def __init__(self, cfg):
        check_fields(cfg)
        super().__init__(
            cfg,
            flip=cfg.horizontal_flip,
            randaugment=RandAugment.parse(cfg.auto_augment) if cfg.auto_augment else None,
            erase=RandomErase(cfg.random_erase) if cfg.random_erase else None,
        )
        self.num_classes: int | None = None

    def build_model(self, model_cfg, from_checkpoint=False):
        model = super().build_model(model_cfg, from_checkpoint)
        if not hasattr(model, "mixing") or not hasattr(model, "num_classes"):
            raise UserError(
                f"task {self.cfg._name} is for a model that classifies images, and {type(model).__name__} does not; "
                "set model._name=mae_image_classification or data2vec_image_classification"
            )
        if not from_checkpoint:
            check_optimizer(self.cfg, model)
            check_normalization(self.cfg, model.cfg)
        self.num_classes = model.num_classes
        self.augment.config = dataclasses.replace(self.augment.config, mixing=model.mixing)
        return model

    # -- data ------------------------------------------------------------------------------------

    def load_dataset(self, split: str, combine: bool = False, task_cfg: FairseqDataclass = None, **kwargs):
        cfg = task_cfg or self.cfg
        index = find_images([cfg.data], split, cfg.dataset_type)
        training = split == train_subset(cfg)
        labels = self._labels(index, cfg, training)
        dataset = LabelledImageDataset(
            index,
            self.crop_rule(training, cfg),
            labels=labels,
            key=self.image_key,
            label_key=self.label_key,
            training=training,
            **self.dataset_options(cfg),
        )
        logger.info("%s: %s, %d classes", split, dataset.rule, len(set(labels.tolist())))
        self.datasets[split] = self.counted[split] = dataset

    def crop_rule(self, training: bool, cfg=None) -> CropRule:
        """How images are cropped, by default with this task's own configuration."""
        cfg = cfg or self.cfg
        crop = cfg.crop or ("shift" if cfg.input_size <= self.shift_up_to else "random")
        return CropRule(
            cfg.input_size,
            beit=True,
            plain=crop == "whole",
            shift=SHIFT if crop == "shift" else 0,
            training=training,
            share_up_to=self.share_up_to,
        )

    def _labels(self, index, cfg, training: bool):
        """Numbers of the classes as in training: the checkpoint's, else those of the training split, else its own."""
        known, where = self._trained_classes(), "the checkpoint"
        if training or known is None:
            names, place = index.classes, index.source
            if not training and (found := train_classes(cfg.data, train_subset(cfg))):
                names, place = found, f"{cfg.data}/{train_subset(cfg)}"
            self._compare(known, names)
            known, where = names, place
        labels = numbered(index, known, where, self.num_classes)
        if training and known:
            self.state.merge_state_dict({CLASSES: list(known)})
        return labels

    def _trained_classes(self) -> tuple[str, ...] | None:
        found = self.state.state_dict.get(CLASSES)
        return None if found is None else tuple(found)

    def _compare(self, known, names) -> None:
        if known is not None and tuple(known) != tuple(names):
            differing = sorted(set(known) ^ set(names))
            raise UserError(
                f"the checkpoint was trained with other classes than those of task.data={self.cfg.data} "
                f"({len(known)} and {len(names)}, {', '.join(differing[:3])} only in one); give the data it was "
                "trained on, or begin with the checkpoint of pre-training and another checkpoint.save_dir"
            )

    def check_state(self, state_dict: Dict[str, Any]) -> None:
        """Compare a checkpoint's classes with those of the data, where that is read already.

        Raises:
            UserError: they differ.
        """
        if CLASSES in state_dict and (own := self._trained_classes()) is not None:
            self._compare(state_dict[CLASSES], own)

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.check_state(state_dict)
        super().load_state_dict(state_dict)

    # -- steps -----------------------------------------------------------------------------------

    def finished(self, sample: dict, dtype: torch.dtype, training: bool) -> dict:
        images, labels = sample["net_input"][self.image_key], sample["net_input"][self.label_key]
        if not training:
            return {self.image_key: self.augment.plain(images, dtype)}
        images, _ = self.augment(images, sample["ids"], sample["epoch"], dtype)
        if self.augment.config.mixing is not None:
            images, labels = self.augment.mix(images, labels, sample["ids"], sample["epoch"])
        return {self.image_key: images, self.label_key: labels}

    def reduce_metrics(self, logging_outputs, criterion):
        """``accuracy`` and ``top5`` in percent, from counts over all batches and processes."""
        super().reduce_metrics(logging_outputs, criterion)
        if not any("_correct1" in log for log in logging_outputs):
            return
        metrics.log_scalar_sum("_classified", sum(log.get("_classified", 0) for log in logging_outputs))
        for count, name in ACCURACIES.items():
            metrics.log_scalar_sum(count, sum(log.get(count, 0) for log in logging_outputs))
            metrics.log_derived(name, _percent(count))


def _percent(count: str):
    def derived(meters):
        return round(float(100 * meters[count].sum / meters["_classified"].sum), 3)

    return derived


def check_fields(cfg) -> None:
    """Refuse values that could only fail later or be ignored.

    Raises:
        UserError: one line that names the field and what to change.
    """
    check_data(cfg, "that holds the splits", "images")
    check_image_fields(cfg)
    for name, known in (("dataset_type", KINDS), ("crop", CROPS)):
        value = getattr(cfg, name)
        if value not in known and not (name == "crop" and value is None):
            raise UserError(f"task.{name} must be one of {', '.join(known)}, got {value!r}")
    check_shares("task", cfg, ("horizontal_flip", "random_erase"))


def check_optimizer(cfg, model: torch.nn.Module) -> None:
    """Say so where layer-wise rates would be asked for in vain.

    Raises:
        UserError: fp16 would make one parameter of all, which has one rate.
    """
    overrides = (getattr(parameter, "optim_overrides", {}) for parameter in model.parameters())
    if not any("lr_scale" in override.get("optimizer", {}) for override in overrides):
        return
    if elsewhere(cfg, "fp16", False) and not elsewhere(cfg, "fp16_no_flatten_grads", True):
        raise UserError(
            "model.layer_decay gives layers rates of their own, and fp16 makes one parameter of all; set "
            "common.fp16_no_flatten_grads=true, or model.layer_decay=0"
        )
    name = elsewhere(cfg, "optimizer", None)
    if name not in (None, "d2v_adamw", "composite"):
        logger.warning(
            "optimizer %s gives all layers one rate, in spite of model.layer_decay; d2v_adamw, or composite with "
            "dynamic_groups: true, scales it",
            name,
        )


def check_normalization(cfg, model_cfg) -> None:
    """Compare with the normalisation of pre-training, where its configuration has one and its weights are used.

    Args:
        model_cfg: the model's, with ``pretrained_model_args``.
    Raises:
        UserError: images would be of another mean or deviation than those that the weights are for.
    """
    if getattr(model_cfg, "no_pretrained_weights", False):
        return
    trained = OmegaConf.create(model_cfg.pretrained_model_args)
    for name in ("normalization_mean", "normalization_std"):
        own = list(getattr(cfg, name))
        # a task of several modalities keeps what concerns images below image
        found = OmegaConf.select(trained, f"task.image.{name}") or OmegaConf.select(trained, f"task.{name}")
        if found is not None and not all(math.isclose(*pair, abs_tol=1e-6) for pair in zip(found, own, strict=True)):
            raise UserError(
                f"task.{name}={own} and the pre-trained model saw images with {list(found)}; set "
                f"task.{name}={list(found)}"
            )
