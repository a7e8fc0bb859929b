"""What the tasks share that pre-train on images: fields, checks, the dataset, and batches as the model takes them."""

import logging
import sys
from dataclasses import dataclass, field
from typing import List, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask
from omegaconf import II, MISSING

from d2v_plugin.data.images.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, BatchAugment
from d2v_plugin.data.images.dataset import ImageDataset
from d2v_plugin.data.images.geometry import CropRule
from d2v_plugin.data.images.index import ImageIndex
from d2v_plugin.data.images.io import MAX_PIXELS
from d2v_plugin.data.images.masks import ModelMasks
from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import BeitMasks
from d2v_plugin.tasks._bad_file_reports import BadFileReports
from d2v_plugin.tasks._fields import check_data, check_max_bad_files, check_modality, train_subset
from d2v_plugin.tasks._forward import named_arguments
from d2v_plugin.tasks._image_model import MODALITY, check_model
from d2v_plugin.tasks._subsample import check_subsample, subsampled

logger = logging.getLogger(__name__)

JITTER = 0.4


@dataclass
class ImagePretrainingFields(FairseqDataclass):
    """Fields of both tasks; which of them are upstream's differs."""

    data: str = field(default=MISSING, metadata={"help": "folder that holds the splits"})
    multi_data: Optional[List[str]] = field(default=None, metadata={"help": "several such folders instead of data"})
    input_size: int = field(default=224, metadata={"help": "side of the square the model sees, pixels"})
    local_cache_path: Optional[str] = field(
        default=None,
        metadata={"help": "folder on a fast disk that images are copied to; slurm_tmpdir means $SLURM_TMPDIR"},
    )
    rebuild_batches: bool = field(
        default=True, metadata={"help": "batch anew in every epoch; without, a resumed run has other batches"}
    )
    subsample: float = field(default=1, metadata={"help": "share of the images that is used"})
    seed: int = II("common.seed")
    max_bad_files: int = field(
        default=100,
        metadata={
            "help": "how many unusable images are skipped before training stops, per process and data split; "
            "0 stops at the first, -1 never stops"
        },
    )
    max_image_pixels: int = field(default=MAX_PIXELS, metadata={"help": "larger images are skipped as unusable"})
    exif_orientation: bool = field(default=False, metadata={"help": "turn images as their camera noted"})
    normalization_mean: List[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    normalization_std: List[float] = field(default_factory=lambda: list(IMAGENET_STD))
    train_subset: str = II("dataset.train_subset")


class ImagePretraining(BadFileReports, FairseqTask):
    """Random crops of images without labels.

    A task says in ``key`` what the model calls its input, and makes its datasets with ``image_dataset``.
    """

    key = "img"

    def __init__(self, cfg, *, flip: float = 0.5, jitter: float = 0.0, jitter_target: bool = False):
        super().__init__(cfg)
        check_fields(cfg)
        self.model_takes: frozenset[str] = frozenset()
        self.model_masks: ModelMasks | None = None
        config = AugmentConfig(
            mean=tuple(cfg.normalization_mean),
            std=tuple(cfg.normalization_std),
            flip=flip,
            jitter=jitter,
            jitter_target=jitter_target,
        )
        self.augment = BatchAugment(config, cfg.seed)
        self.start_reports()

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        return cls(cfg)

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
            seed=cfg.seed,
            max_bad_files=cfg.max_bad_files,
            max_pixels=cfg.max_image_pixels,
            orient=cfg.exif_orientation,
            local_cache_path=cfg.local_cache_path,
            model_takes=self.model_takes,
        )
        logger.info("%s: %s", split, dataset.rule)
        self.datasets[split] = self.counted[split] = dataset

    def train_step(self, sample, model, *args, **kwargs):
        return super().train_step(self.on_device(sample, model, training=True), model, *args, **kwargs)

    def valid_step(self, sample, model, *args, **kwargs):
        return super().valid_step(self.on_device(sample, model, training=False), model, *args, **kwargs)

    def on_device(self, sample: dict, model: torch.nn.Module, training: bool) -> dict:
        """The batch as the model takes it: augmented, normalised, in the model's precision. ``sample`` stays as it is.

        fairseq may use a sample again, as a stand-in for an empty batch and when it looks for NaN.
        """
        net_input = dict(sample["net_input"])
        images = net_input[self.key]
        dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        if training:
            source, target = self.augment(images, sample["ids"], sample["epoch"], dtype)
        else:
            source = self.augment.plain(images, dtype)
            target = source if self.augment.config.jitter_target else None
        net_input[self.key] = source
        if target is not None:
            net_input["target"] = target
        return {**sample, "net_input": net_input}

    @property
    def source_dictionary(self):
        return None

    @property
    def target_dictionary(self):
        return None

    def max_positions(self):
        return sys.maxsize, sys.maxsize


def check_fields(cfg) -> None:
    """Refuse values that could only fail later or be ignored.

    Raises:
        UserError: one line that names the field and what to change.
    """
    if not cfg.multi_data:
        check_data(cfg, "that holds the splits", "images")
    if cfg.input_size <= 0:
        raise UserError(f"task.input_size must be positive, got {cfg.input_size}; 224 is usual")
    check_subsample(cfg)
    check_max_bad_files(cfg)
    if cfg.max_image_pixels <= 0:
        raise UserError(f"task.max_image_pixels must be positive, got {cfg.max_image_pixels}")
    for name, values in (("mean", cfg.normalization_mean), ("std", cfg.normalization_std)):
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            positive = "positive " if name == "std" else ""
            raise UserError(f"task.normalization_{name} must be three {positive}numbers, got {list(values)}")
