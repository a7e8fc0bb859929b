"""What the audio tasks share: configuration checks and building datasets."""

import logging
import os
from dataclasses import dataclass, field

import numpy as np
import torch

from d2v_plugin.data.audio.dataset import AudioDataset
from d2v_plugin.data.audio.manifest import Manifest, load_manifest
from d2v_plugin.errors import UserError
from d2v_plugin.tasks._audio_model import STANDARD_EXTRACTOR, audio_masks, check_model, conv_spec
from d2v_plugin.tasks._bad_file_reports import BadFileReports
from d2v_plugin.tasks._fields import check_data, check_max_bad_files
from d2v_plugin.tasks._forward import named_arguments
from d2v_plugin.tasks._subsample import check_subsample, subsampled

logger = logging.getLogger(__name__)


@dataclass
class AudioFields:
    """Fields that the audio tasks have beyond fairseq's."""

    max_bad_files: int = field(
        default=100,
        metadata={
            "help": "how many unusable audio files are skipped before training stops, per process and data split; "
            "0 stops at the first, -1 never stops"
        },
    )
    resample: bool = field(
        default=True,
        metadata={"help": "convert audio of another sample rate while reading; false skips it as unusable"},
    )


def check_fields(cfg) -> None:
    """Refuse values that could only fail later or be ignored.

    Raises:
        UserError: one line that names the field and what to change.
    """
    check_data(cfg, "that holds the manifests", "manifests")
    longest, shortest = cfg.max_sample_size, cfg.min_sample_size
    for name, value in (("max_sample_size", longest), ("min_sample_size", shortest)):
        if value is not None and value < 0:
            raise UserError(f"task.{name} must not be negative, got {value}; it counts samples")
    if longest is not None and longest < max(shortest or 0, 1):
        raise UserError(
            f"task.max_sample_size={longest} is below task.min_sample_size={shortest or 1}, so nothing could be used; "
            "raise the first or lower the second (both count samples)"
        )
    if cfg.sample_rate <= 0:
        raise UserError(f"task.sample_rate must be positive, got {cfg.sample_rate}; 16000 is usual")
    check_subsample(cfg)
    check_max_bad_files(cfg)
    if cfg.binarized_dataset:
        raise UserError("task.binarized_dataset is not read; use the .tsv manifest, which is stored compactly anyway")
    if cfg.multi_corpus_keys is not None:
        raise UserError("task.multi_corpus_keys is not supported; join the manifests into one and remove it")


class AudioTaskMixin(BadFileReports):
    """Put before a fairseq task class.

    A task says how many frames it needs at least in ``minimum_frames``, and whether it masks in ``pretrains``.
    """

    minimum_frames = 1
    pretrains = False

    def prepare(self) -> None:
        """Call at the end of ``__init__``."""
        check_fields(self.cfg)
        if not self.pretrains and self.cfg.precompute_mask_config is not None:
            raise UserError("task.precompute_mask_config is for pre-training; remove it")
        self.model_takes: frozenset[str] = frozenset()
        self.conv_spec = STANDARD_EXTRACTOR
        self.start_reports()

    def build_model(self, model_cfg, from_checkpoint=False):
        # A checkpoint that is loaded elsewhere names a folder of the machine that trained it. fairseq lists the folder
        # between this and the first manifest.
        if not from_checkpoint and not os.path.isdir(self.cfg.data):
            raise UserError(f"task.data={self.cfg.data} is no folder; give the one that holds the manifests")
        model = super().build_model(model_cfg, from_checkpoint)
        self.fit_to(model, from_checkpoint)
        return model

    def fit_to(self, model: torch.nn.Module, from_checkpoint: bool = False) -> None:
        """Take over what the model says about its input.

        Raises:
            UserError: a new model that this task's batches are not for.
        """
        # A model from a checkpoint is for its own data, whatever this task was made for.
        if not from_checkpoint:
            check_model(model, audio_masks(self.cfg))
        self.model_takes = frozenset(named_arguments(model))
        self.conv_spec = conv_spec(model) or STANDARD_EXTRACTOR
        for dataset in self.counted.values():
            dataset.model_takes = self.model_takes

    @property
    def shortest(self) -> int:
        """Fewest samples that make ``minimum_frames`` frames."""
        return self.conv_spec.receptive_field + (self.minimum_frames - 1) * self.conv_spec.stride

    def read_manifest(self, split: str, sample_rate: int, max_size: int | None = None) -> Manifest:
        """The split's manifest without entries that are too short for the model (or longer than ``max_size``)."""
        path = os.path.join(self.cfg.data, f"{split}.tsv")
        manifest = load_manifest(path, max(self.cfg.min_sample_size or 0, self.shortest), max_size)
        if self.cfg.subsample < 1:
            kept = subsampled(len(manifest), self.cfg.subsample, self.cfg.seed)
            manifest = manifest.select(kept, f"left out by subsample={self.cfg.subsample}")
        hours = manifest.sizes.sum() / sample_rate / 3600
        left_out = "".join(f"; {count} {reason}" for reason, count in manifest.skipped.items())
        logger.info("%s: %d of %d entries, %.2f h%s", manifest.path, len(manifest), manifest.total, hours, left_out)
        return manifest

    def audio_dataset(self, split: str, manifest: Manifest, task_cfg, pad: bool) -> AudioDataset:
        dataset = AudioDataset(
            manifest,
            sample_rate=task_cfg.sample_rate,
            max_sample_size=self.cfg.max_sample_size,
            pad=pad,
            normalize=task_cfg.normalize,
            num_buckets=self.cfg.num_batch_buckets or int(self.cfg.tpu),
            resample=self.cfg.resample,
            max_bad_files=self.cfg.max_bad_files,
            seed=self.cfg.seed,
            shortest=self.shortest,
            masks=audio_masks(task_cfg),
            model_takes=self.model_takes,
        )
        self.counted[split] = dataset
        return dataset

    def get_batch_iterator(self, dataset, max_tokens=None, **kwargs):
        """fairseq's, which would stop with a bare assertion at a recording that no batch can hold."""
        longest = int(max(dataset.num_tokens_vec(np.arange(len(dataset))), default=0))
        if max_tokens is not None and longest > max_tokens:
            raise UserError(
                f"the longest recording has {longest} samples and dataset.max_tokens={max_tokens} is the most a batch "
                "holds; lower task.max_sample_size to it (longer recordings are then cropped, or left out where they "
                "have transcripts), or raise dataset.max_tokens"
            )
        return super().get_batch_iterator(dataset, max_tokens=max_tokens, **kwargs)
