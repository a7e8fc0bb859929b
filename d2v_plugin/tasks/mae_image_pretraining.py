"""Task ``mae_image_pretraining``: images without labels, for data2vec 2.0 and for MAE, with upstream's fields."""

import logging
import sys
from dataclasses import dataclass, field
from typing import List, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING

from d2v_plugin.data.images.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, BatchAugment
from d2v_plugin.data.images.dataset import ImageDataset
from d2v_plugin.data.images.geometry import CropRule
from d2v_plugin.data.images.io import MAX_PIXELS
from d2v_plugin.data.images.source import KINDS, find_images
from d2v_plugin.errors import UserError
from d2v_plugin.tasks._bad_file_reports import BadFileReports
from d2v_plugin.tasks._fields import check_data, check_max_bad_files, check_modality, train_subset
from d2v_plugin.tasks._forward import named_arguments
from d2v_plugin.tasks._image_model import MODALITY, check_model, image_masks
from d2v_plugin.tasks._subsample import check_subsample, subsampled

logger = logging.getLogger(__name__)

JITTER = 0.4


@dataclass
class ImageMaskingConfig:
    """Masks drawn by the data workers; what is not given is the model's."""

    patch_size: int = II("model.modalities.image.patch_size")
    mask_prob: float = II("model.modalities.image.mask_prob")
    mask_prob_adjust: float = II("model.modalities.image.mask_prob_adjust")
    mask_length: int = II("model.modalities.image.mask_length")
    inverse_mask: bool = II("model.modalities.image.inverse_mask")
    mask_dropout: float = II("model.modalities.image.mask_dropout")
    clone_batch: int = II("model.clone_batch")
    expand_adjacent: bool = False
    non_overlapping: bool = False


@dataclass
class MaeImagePretrainingConfig(FairseqDataclass):
    """Upstream's fields, and ours from ``max_bad_files`` on."""

    data: str = field(default=MISSING, metadata={"help": "folder that holds the splits, see dataset_type"})
    multi_data: Optional[List[str]] = field(default=None, metadata={"help": "several such folders instead of data"})
    input_size: int = field(default=224, metadata={"help": "side of the square the model sees, pixels"})
    local_cache_path: Optional[str] = field(
        default=None,
        metadata={"help": "folder on a fast disk that images are copied to; slurm_tmpdir means $SLURM_TMPDIR"},
    )
    key: str = field(default="imgs", metadata={"help": "the model's name for its input: imgs (mae), source (data2vec)"})
    beit_transforms: bool = field(
        default=False, metadata={"help": "crops of 8 to 100 percent and colour jitter, instead of 20 to 100 percent"}
    )
    target_transform: bool = field(
        default=False, metadata={"help": "student and teacher see the same crop with different colour jitter"}
    )
    no_transform: bool = field(default=False, metadata={"help": "the whole image, squeezed into a square"})
    rebuild_batches: bool = True
    precompute_mask_config: Optional[ImageMaskingConfig] = field(
        default=None, metadata={"help": "draw masks in the data workers; {} takes the model's settings"}
    )
    subsample: float = field(default=1, metadata={"help": "share of the images that is used"})
    seed: int = II("common.seed")
    dataset_type: str = field(
        default="imagefolder",
        metadata={
            "help": "imagefolder: <data>/<split>/<class>/*.jpg, or shards where there are no images; "
            "tar: <data>/<split>/*.tar or <data>/<split>-*.tar; path: every image below data, whatever the split"
        },
    )
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


@register_task("mae_image_pretraining", dataclass=MaeImagePretrainingConfig)
class MaeImagePretrainingTask(BadFileReports, FairseqTask):
    """Random crops of images.

    Differs from upstream's task in that unusable images are skipped and counted (``max_bad_files``), tar shards are
    read, crops, colours, masks and order are functions of the seed, the epoch and the sample, and in validation nothing
    is random: the middle of each image is seen.
    """

    cfg: MaeImagePretrainingConfig

    def __init__(self, cfg: MaeImagePretrainingConfig):
        super().__init__(cfg)
        check_fields(cfg)
        self.model_takes: frozenset[str] = frozenset()
        jittered = cfg.target_transform or (cfg.beit_transforms and not cfg.no_transform)
        config = AugmentConfig(
            mean=tuple(cfg.normalization_mean),
            std=tuple(cfg.normalization_std),
            flip=0.0 if cfg.no_transform else 0.5,
            jitter=JITTER if jittered else 0.0,
            jitter_target=cfg.target_transform,
        )
        self.augment = BatchAugment(config, cfg.seed)
        self.start_reports()

    @classmethod
    def setup_task(cls, cfg: MaeImagePretrainingConfig, **kwargs):
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
            check_model(self.cfg, model)
        self.model_takes = frozenset(named_arguments(model))
        for dataset in self.counted.values():
            dataset.model_takes = self.model_takes

    def load_dataset(self, split: str, combine: bool = False, task_cfg: FairseqDataclass = None, **kwargs):
        cfg = task_cfg or self.cfg
        index = find_images(list(cfg.multi_data or [cfg.data]), split, cfg.dataset_type)
        if cfg.subsample < 1:
            index = index.select(subsampled(len(index), cfg.subsample, cfg.seed))
            logger.info("%s: %d images are used, subsample=%g", index.source, len(index), cfg.subsample)
        training = split == train_subset(cfg)
        dataset = ImageDataset(
            index,
            CropRule(cfg.input_size, beit=cfg.beit_transforms, plain=cfg.no_transform, training=training),
            key=cfg.key,
            masks=image_masks(cfg),
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
        images = net_input[self.cfg.key]
        dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        if training:
            source, target = self.augment(images, sample["ids"], sample["epoch"], dtype)
        else:
            source = self.augment.plain(images, dtype)
            target = source if self.cfg.target_transform else None
        net_input[self.cfg.key] = source
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
    if cfg.dataset_type not in KINDS:
        raise UserError(f"task.dataset_type must be one of {', '.join(KINDS)}, got {cfg.dataset_type!r}")
    check_subsample(cfg)
    check_max_bad_files(cfg)
    if cfg.max_image_pixels <= 0:
        raise UserError(f"task.max_image_pixels must be positive, got {cfg.max_image_pixels}")
    for name, values in (("mean", cfg.normalization_mean), ("std", cfg.normalization_std)):
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            positive = "positive " if name == "std" else ""
            raise UserError(f"task.normalization_{name} must be three {positive}numbers, got {list(values)}")
