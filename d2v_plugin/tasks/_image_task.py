"""What all tasks on images share: fields, checks, options of their datasets, and augmentation on the device."""

from dataclasses import dataclass, field
from typing import List, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask
from omegaconf import II, MISSING

from d2v_plugin.data.images.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, BatchAugment
from d2v_plugin.data.images.io import MAX_PIXELS
from d2v_plugin.errors import UserError
from d2v_plugin.tasks._bad_file_reports import BadFileReports
from d2v_plugin.tasks._fields import check_max_bad_files
from d2v_plugin.tasks._finished_on_device import FinishedOnDevice


@dataclass
class ImageFields(FairseqDataclass):
    """Fields of every task on images; which of them are upstream's differs."""

    data: str = field(default=MISSING, metadata={"help": "folder that holds the splits"})
    input_size: int = field(default=224, metadata={"help": "side of the square the model sees, pixels"})
    local_cache_path: Optional[str] = field(
        default=None,
        metadata={"help": "folder on a fast disk that images are copied to; slurm_tmpdir means $SLURM_TMPDIR"},
    )
    rebuild_batches: bool = field(
        default=True, metadata={"help": "batch anew in every epoch; without, a resumed run has other batches"}
    )
    normalization_mean: List[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    normalization_std: List[float] = field(default_factory=lambda: list(IMAGENET_STD))
    max_bad_files: int = field(
        default=100,
        metadata={
            "help": "how many unusable images are skipped before training stops, per process and data split; "
            "0 stops at the first, -1 never stops"
        },
    )
    max_image_pixels: int = field(default=MAX_PIXELS, metadata={"help": "larger images are skipped as unusable"})
    exif_orientation: bool = field(default=False, metadata={"help": "turn images as their camera noted"})
    seed: int = II("common.seed")
    train_subset: str = II("dataset.train_subset")


class ImageTask(FinishedOnDevice, BadFileReports, FairseqTask):
    """Images that are augmented and normalised on the device.

    Args:
        cfg: ``ImageFields``.
        augmentation: fields of ``AugmentConfig`` beside mean and std.
    """

    def __init__(self, cfg, **augmentation):
        super().__init__(cfg)
        mean, std = tuple(cfg.normalization_mean), tuple(cfg.normalization_std)
        self.augment = BatchAugment(AugmentConfig(mean=mean, std=std, **augmentation), cfg.seed)
        self.start_reports()

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        return cls(cfg)

    def dataset_options(self, cfg) -> dict:
        """Arguments of ``ImageDataset`` that are fields of the task."""
        return {
            "seed": cfg.seed,
            "max_bad_files": cfg.max_bad_files,
            "max_pixels": cfg.max_image_pixels,
            "orient": cfg.exif_orientation,
            "local_cache_path": cfg.local_cache_path,
        }

    def on_device(self, sample: dict, model: torch.nn.Module, training: bool) -> dict:
        """The batch with what ``finished`` says of it, in the model's precision. ``sample`` stays as it is."""
        dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
        return {**sample, "net_input": {**sample["net_input"], **self.finished(sample, dtype, training)}}

    def finished(self, sample: dict, dtype: torch.dtype, training: bool) -> dict:
        """Entries of ``net_input`` that are replaced or added."""
        raise NotImplementedError


def check_image_fields(cfg) -> None:
    """Refuse values that could only fail later.

    Raises:
        UserError: one line that names the field and what to change.
    """
    if cfg.input_size <= 0:
        raise UserError(f"task.input_size must be positive, got {cfg.input_size}; 224 is usual")
    check_max_bad_files(cfg)
    if cfg.max_image_pixels <= 0:
        raise UserError(f"task.max_image_pixels must be positive, got {cfg.max_image_pixels}")
    for name, values in (("mean", cfg.normalization_mean), ("std", cfg.normalization_std)):
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            positive = "positive " if name == "std" else ""
            raise UserError(f"task.normalization_{name} must be three {positive}numbers, got {list(values)}")
