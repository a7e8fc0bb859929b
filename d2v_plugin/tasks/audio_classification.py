"""Task ``audio_classification``, with upstream's fields and files: recordings with one or more classes each.

fairseq has another task of that name, for spoken language identification, and keeps the first one registered, so that
upstream's is not reached beside it. With this plugin the name means upstream's task, as in its YAML files.
"""

import os
from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.logging import metrics
from fairseq.logging.meters import safe_round
from fairseq.tasks import TASK_CLASS_NAMES, TASK_DATACLASS_REGISTRY, TASK_REGISTRY, register_task
from fairseq.tasks.audio_pretraining import AudioPretrainingConfig, AudioPretrainingTask

from d2v_plugin.data.audio.class_dataset import ClassDataset
from d2v_plugin.data.audio.classes import load_classes, read_descriptors
from d2v_plugin.errors import UserError
from d2v_plugin.eval.average_precision import mean_average_precision
from d2v_plugin.tasks._audio import AudioFields, AudioTaskMixin

NAME = "audio_classification"
SUFFIX = "lbl"
PREDICTIONS, TARGETS = "_predictions", "_targets"

if TASK_REGISTRY.get(NAME) is not None and TASK_REGISTRY[NAME].__module__ == f"fairseq.tasks.{NAME}":
    TASK_CLASS_NAMES.discard(TASK_REGISTRY.pop(NAME).__name__)
    TASK_DATACLASS_REGISTRY.pop(NAME, None)


@dataclass
class D2VAudioClassificationConfig(AudioFields, AudioPretrainingConfig):
    """Upstream's fields and AudioFields.

    On the command line fairseq fills in the defaults of its own task of this name first: no ``labels``, which here
    means "lbl", and ``target_dictionary``.
    """

    label_descriptors: str = "label_descriptors.csv"
    labels: Optional[str] = SUFFIX
    target_dictionary: Optional[str] = field(default=None, metadata={"help": "of fairseq's task; not read here"})


@register_task(NAME, dataclass=D2VAudioClassificationConfig)
class D2VAudioClassificationTask(AudioTaskMixin, AudioPretrainingTask):
    """Waveforms from ``<data>/<split>.tsv`` with the class numbers in ``<data>/<split>.<labels>``.

    Which classes there are says ``<data>/<label_descriptors>``; see d2v_plugin/data/audio/classes.py for both files. A
    checkpoint carries the classes, so it loads without the data. Recordings beyond ``max_sample_size`` are cropped.

    Validation logs ``mAP`` over the whole set, whatever its size (upstream gives 0 for fewer than 100 recordings) and
    however many processes share it, and ``accuracy`` where every recording has one class.
    """

    def __init__(self, cfg: D2VAudioClassificationConfig):
        super().__init__(cfg)
        if cfg.target_dictionary is not None:
            raise UserError(
                "task.target_dictionary is of fairseq's own audio_classification; here task.label_descriptors names "
                "the file that lists the classes"
            )
        self.state.add_factory("labels", self.load_labels)
        self.prepare()

    @property
    def descriptors_path(self) -> str:
        return os.path.join(self.cfg.data, self.cfg.label_descriptors)

    def load_labels(self) -> dict[str, int]:
        return read_descriptors(self.descriptors_path)

    @property
    def labels(self) -> dict[str, int]:
        """Class numbers by label."""
        return self.state.labels

    def load_dataset(self, split: str, task_cfg=None, **kwargs):
        task_cfg = task_cfg or self.cfg
        manifest = self.read_manifest(split, task_cfg.sample_rate)
        labels = load_classes(
            os.path.join(self.cfg.data, f"{split}.{task_cfg.labels or SUFFIX}"),
            len(self.labels),
            rows=manifest.rows,
            total=manifest.total,
            manifest_path=manifest.path,
            descriptors=self.descriptors_path,
        )
        audio = self.audio_dataset(split, manifest, task_cfg, pad=True)
        self.datasets[split] = ClassDataset(audio, labels, len(self.labels))

    def build_criterion(self, cfg, from_checkpoint=False):
        """fairseq's ``model`` hands out predictions only where asked to; the metrics of this task need them."""
        criterion = super().build_criterion(cfg, from_checkpoint)
        if hasattr(criterion, "log_keys"):
            criterion.log_keys = list(dict.fromkeys([*criterion.log_keys, PREDICTIONS, TARGETS]))
            criterion.can_sum = False
        return criterion

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        with_predictions = [log for log in logging_outputs if PREDICTIONS in log]
        if not with_predictions:
            return
        for key in (PREDICTIONS, TARGETS):
            # fairseq keeps them all until the set is through; of one number it makes a float
            rows = [torch.as_tensor(log[key]).float().cpu().view(-1, len(self.labels)) for log in with_predictions]
            metrics.log_concat_tensor(key, torch.cat(rows))
        metrics.log_derived("mAP", _mean_average_precision)
        if all(getattr(dataset, "single_label", True) for dataset in self.datasets.values()):
            metrics.log_derived("accuracy", _accuracy)


def _mean_average_precision(meters) -> float:
    return safe_round(mean_average_precision(meters[PREDICTIONS].tensor.numpy(), meters[TARGETS].tensor.numpy()), 5)


def _accuracy(meters) -> float:
    """Share of recordings whose likeliest class is theirs."""
    right = meters[PREDICTIONS].tensor.argmax(1) == meters[TARGETS].tensor.argmax(1)
    return safe_round(right.float().mean().item(), 5)
