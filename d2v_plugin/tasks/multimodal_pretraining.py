"""Task ``multimodal_pretraining``: audio, images and text in turn, in one training of one model."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import List, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed.utils import get_global_world_size
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II

from d2v_plugin.data.mixture import ModalityBatches, ModalityMixture
from d2v_plugin.errors import UserError
from d2v_plugin.tasks._bad_file_reports import log_bad_files
from d2v_plugin.tasks._fields import elsewhere, train_subset
from d2v_plugin.tasks._finished_on_device import FinishedOnDevice
from d2v_plugin.tasks.audio_pretraining import D2VAudioPretrainingConfig, D2VAudioPretrainingTask
from d2v_plugin.tasks.mae_image_pretraining import MaeImagePretrainingConfig, MaeImagePretrainingTask
from d2v_plugin.tasks.masked_lm import D2VMaskedLMConfig, D2VMaskedLMTask

NAMES = ("audio", "image", "text")
SOURCE = "source"
WAITING_BACKENDS = ("c10d", "pytorch_ddp")


@dataclass
class MultimodalPretrainingConfig(FairseqDataclass):
    """Upstream's fields, and limits for each modality: a batch of tokens is not one of samples."""

    audio: Optional[D2VAudioPretrainingConfig] = field(
        default=None, metadata={"help": "as task of d2v_audio_pretraining; none without it"}
    )
    image: Optional[MaeImagePretrainingConfig] = field(
        default=None, metadata={"help": "as task of mae_image_pretraining, with key: source; none without it"}
    )
    text: Optional[D2VMaskedLMConfig] = field(
        default=None, metadata={"help": "as task of d2v_masked_lm, with d2v2_multi and skip_masking; none without it"}
    )

    audio_ratio: float = field(default=1, metadata={"help": "how often the batches of audio come in an epoch"})
    image_ratio: float = field(default=1, metadata={"help": "how often the batches of images come in an epoch"})
    text_ratio: float = field(default=1, metadata={"help": "how often the batches of text come in an epoch"})

    max_tokens: Optional[int] = II("dataset.max_tokens")
    batch_size: Optional[int] = II("dataset.batch_size")
    update_freq: List[int] = II("optimization.update_freq")

    rebuild_batches: bool = True

    audio_max_tokens: Optional[int] = field(default=None, metadata={"help": "instead of max_tokens, for audio"})
    text_max_tokens: Optional[int] = field(default=None, metadata={"help": "instead of max_tokens, for text"})
    audio_batch_size: Optional[int] = field(default=None, metadata={"help": "instead of batch_size, for audio"})
    image_batch_size: Optional[int] = field(default=None, metadata={"help": "instead of batch_size, for images"})
    text_batch_size: Optional[int] = field(default=None, metadata={"help": "instead of batch_size, for text"})
    train_subset: str = II("dataset.train_subset")
    ddp_backend: str = II("distributed_training.ddp_backend")
    find_unused_parameters: bool = II("distributed_training.find_unused_parameters")


@register_task("multimodal_pretraining", dataclass=MultimodalPretrainingConfig)
class MultimodalPretrainingTask(FinishedOnDevice, FairseqTask):
    """Every update sees one modality, named in ``net_input["mode"]``; its own task makes the batch.

    A ratio of 2 brings each batch twice in an epoch, with the same crops and masks both times.
    """

    cfg: MultimodalPretrainingConfig

    def __init__(self, cfg: MultimodalPretrainingConfig, from_checkpoint: bool = False):
        super().__init__(cfg)
        check_fields(cfg)
        if not from_checkpoint:
            check_backend(cfg)
        self.audio_task = self.image_task = self.text_task = None
        if cfg.audio is not None:
            with _of("audio"):
                self.audio_task = D2VAudioPretrainingTask.setup_task(cfg.audio)
        if cfg.image is not None:
            with _of("image"):
                self.image_task = MaeImagePretrainingTask.setup_task(cfg.image)
        if cfg.text is not None:
            with _of("text"):
                self.text_task = D2VMaskedLMTask.setup_task(cfg.text, from_checkpoint=from_checkpoint)

    @classmethod
    def setup_task(cls, cfg: MultimodalPretrainingConfig, from_checkpoint: bool = False, **kwargs):
        return cls(cfg, from_checkpoint)

    @property
    def tasks(self) -> dict[str, FairseqTask]:
        """The modalities' own, by name."""
        found = {name: getattr(self, f"{name}_task") for name in NAMES}
        return {name.upper(): task for name, task in found.items() if task is not None}

    @property
    def supported_modalities(self) -> list[str]:
        """Upstream's order, which is that of the encoders in the model."""
        return [name for name in ("TEXT", "AUDIO", "IMAGE") if name in self.tasks]

    def build_model(self, model_cfg, from_checkpoint=False):
        model = super().build_model(model_cfg, from_checkpoint)
        if getattr(model, "modality_encoders", None) is None:
            raise UserError("task multimodal_pretraining is for model data2vec_multi; set model._name=data2vec_multi")
        for name, task in self.tasks.items():
            with _of(name.lower()):
                task.fit_to(model, from_checkpoint)
        return model

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, task_cfg=None, **kwargs):
        for name, task in self.tasks.items():
            with _of(name.lower()):
                task.load_dataset(split, epoch=epoch, combine=combine)
        self.datasets[split] = ModalityMixture(
            {name: task.dataset(split) for name, task in self.tasks.items()},
            {name: task.max_positions() for name, task in self.tasks.items()},
            {name: getattr(self.cfg, f"{name.lower()}_ratio") for name in self.tasks},
        )

    def get_batch_iterator(
        self,
        dataset,
        max_tokens=None,
        max_sentences=None,
        max_positions=None,
        ignore_invalid_inputs=False,
        required_batch_size_multiple=1,
        seed=1,
        num_shards=1,
        shard_id=0,
        num_workers=0,
        epoch=1,
        data_buffer_size=0,
        disable_iterator_cache=False,
        skip_remainder_batch=False,
        grouped_shuffling=False,
        update_epoch_batch_itr=False,
    ):
        """Batches of one modality after the other; in training by ratio, in whole updates."""
        dataset.set_epoch(epoch)
        training = dataset is self.datasets.get(train_subset(self.cfg))
        limits = {
            name: (
                getattr(self.cfg, f"{name.lower()}_max_tokens", None) or max_tokens,
                getattr(self.cfg, f"{name.lower()}_batch_size") or max_sentences,
            )
            for name in self.tasks
        }
        composed = epoch if self.cfg.rebuild_batches else 0
        return ModalityBatches(
            dataset,
            batch_samplers=dataset.batches(limits, required_batch_size_multiple, seed + composed, mixed=training),
            required=training,
            seed=seed,
            num_shards=num_shards,
            shard_id=shard_id,
            num_workers=num_workers,
            epoch=epoch,
            mult_rate=max(self.cfg.update_freq) if training else 1,
            buffer_size=data_buffer_size,
            skip_remainder_batch=skip_remainder_batch,
        )

    def on_device(self, sample: dict, model: torch.nn.Module, training: bool) -> dict:
        """The batch as the model takes it: images are augmented, the others are ready."""
        if sample["net_input"]["mode"] == "IMAGE":
            return self.image_task.on_device(sample, model, training)
        return sample

    def begin_epoch(self, epoch, model):
        for task in self.tasks.values():
            task.begin_epoch(epoch, model)

    def begin_valid_epoch(self, epoch, model):
        for task in self.tasks.values():
            task.begin_valid_epoch(epoch, model)

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        # text has no files that are read one by one
        log_bad_files(dataset for task in self.tasks.values() for dataset in getattr(task, "counted", {}).values())

    def state_dict(self):
        return {} if self.text_task is None else self.text_task.state_dict()

    def load_state_dict(self, state_dict):
        if self.text_task is not None:
            self.text_task.load_state_dict(state_dict)


@contextlib.contextmanager
def _of(name: str) -> Iterator[None]:
    """Errors of a modality's own task name its fields as they are called here."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("task.", f"task.{name}.")) from None


def check_fields(cfg) -> None:
    """Refuse values that could only fail later.

    Raises:
        UserError: one line that names the field and what to change.
    """
    if all(getattr(cfg, name) is None for name in NAMES):
        raise UserError("task multimodal_pretraining has no modality; give task.audio, task.image or task.text")
    for name in NAMES:
        ratio = getattr(cfg, f"{name}_ratio")
        if getattr(cfg, name) is not None and ratio <= 0:
            raise UserError(
                f"task.{name}_ratio must be above 0, got {ratio}; leave task.{name} out to train without it"
            )
    if cfg.image is not None and cfg.image.key != SOURCE:
        raise UserError(
            f"task.image.key={cfg.image.key}, and all modalities share one name; set task.image.key={SOURCE}"
        )
    if cfg.text is not None and not cfg.text.d2v2_multi:
        raise UserError("task.text needs d2v2_multi: true and skip_masking: true; set both")


def check_backend(cfg) -> None:
    """Refuse several processes where each would wait for gradients that an update of one modality does not make.

    Raises:
        UserError: one line that says which backend to take.
    """
    backend = str(elsewhere(cfg, "ddp_backend", None))
    several = sum(getattr(cfg, name) is not None for name in NAMES) > 1 and get_global_world_size() > 1
    if several and backend in WAITING_BACKENDS and not elsewhere(cfg, "find_unused_parameters", False):
        raise UserError(
            f"distributed_training.ddp_backend={backend} waits for gradients of all modalities, and an update has "
            "those of one; set distributed_training.ddp_backend=legacy_ddp"
        )
