"""What the tasks share that pre-train on images: fields, checks, the dataset, and batches as the model takes them."""

import logging
from dataclasses import dataclass, field
from typing import List, Optional

import torch

from d2v_plugin.data.images.dataset import ImageDataset
from d2v_plugin.data.images.geometry import CropRule
from d2v_plugin.data.images.index import ImageIndex
from d2v_plugin.data.images.masks import ModelMasks
from d2v_plugin.method.masking import BeitMasks
from d2v_plugin.tasks._fields import check_data, check_modality, train_subset
from d2v_plugin.tasks._forward import named_arguments
from d2v_plugin.tasks._image_model import MODALITY, check_model
from d2v_plugin.tasks._image_task import ImageFields, ImageTask, check_image_fields
from d2v_plugin.tasks._subsample import check_subsample, subsampled

logger = logging.getLogger(__name__)

JITTER = 0.4


@dataclass
class ImagePretrainingFields(ImageFields):
    """Fields of both tasks; which of them are upstream's differs."""

    multi_data: Optional[List[str]] = field(default=None, metadata={"help": "several such folders instead of data"})
    subsample: float = field(default=1, metadata={"help": "share of the images that is used"})


class ImagePretraining(ImageTask):
    """Random crops of images without labels.

    A task says in ``key`` what the model calls its input, and makes its datasets with ``image_dataset``.
    """

    key = "img"

    def __init__(self, cfg, *, flip: float = 0.5, jitter: float = 0.0, jitter_target: bool = False):
        check_fields(cfg)
        super().__init__(cfg, flip=flip, jitter=jitter, jitter_target=jitter_target)
        self.model_takes: frozenset[str] = frozenset()
        self.model_masks: ModelMasks | None = None

    def build_model(self, model_cfg, from_checkpoint=False):
        check_modality(model_cfg, MODALITY, "images", strangers=True)
        model = super().build_model(model_cfg, from_checkpoint)
        self.fit_to(model, from_checkpoint)
        return model

    def fit_to(self, model: torch.nn.Module, from_checkpoint: bool = False) -> None:
        """Take over what the model says about its input.

        Raises:
            UserError: a new model that this task's batches are not for.
        """
        # A model from a checkpoint is for its own images, whatever this task was made for.
        if not from_checkpoint:
            check_model(self.cfg, self.key, model)
        self.model_takes = frozenset(named_arguments(model))
        own = getattr(model, "masks", None)
        self.model_masks = ModelMasks(own) if isinstance(own, BeitMasks) else None
        for dataset in self.counted.values():
            dataset.model_takes = self.model_takes
            dataset.masks = self.masks(self.cfg)

    def masks(self, cfg):
        """What draws masks for a dataset, or None where the model draws them or has none."""
        return self.model_masks

    def image_dataset(self, split: str, index: ImageIndex, cfg, **rule) -> None:
        """Make the split's dataset; ``rule`` are arguments of CropRule."""
        if cfg.subsample < 1:
            index = index.select(subsampled(len(index), cfg.subsample, cfg.seed))
            logger.info("%s: %d images are used, subsample=%g", index.source, len(index), cfg.subsample)
        training = split == train_subset(cfg)
        dataset = ImageDataset(
            index,
            CropRule(cfg.input_size, training=training, **rule),
            key=self.key,
            masks=self.masks(cfg),
            training=training,
            model_takes=self.model_takes,
            **self.dataset_options(cfg),
        )
        logger.info("%s: %s", split, dataset.rule)
        self.datasets[split] = self.counted[split] = dataset

    def finished(self, sample: dict, dtype: torch.dtype, training: bool) -> dict:
        images = sample["net_input"][self.key]
        if training:
            source, target = self.augment(images, sample["ids"], sample["epoch"], dtype)
        else:
            source = self.augment.plain(images, dtype)
            target = source if self.augment.config.jitter_target else None
        return {self.key: source} if target is None else {self.key: source, "target": target}


def check_fields(cfg) -> None:
    """Refuse values that could only fail later or be ignored.

    Raises:
        UserError: one line that names the field and what to change.
    """
    if not cfg.multi_data:
        check_data(cfg, "that holds the splits", "images")
    check_image_fields(cfg)
    check_subsample(cfg)
