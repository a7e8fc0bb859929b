"""Task ``d2v_audio_finetuning``: fairseq's ``audio_finetuning``, for which its configuration is a drop-in."""

import os
from dataclasses import dataclass, field

from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.audio_finetuning import AudioFinetuningConfig, AudioFinetuningTask

from d2v_plugin.data.audio.labels import load_labels
from d2v_plugin.data.audio.target_dataset import TargetDataset
from d2v_plugin.errors import UserError
from d2v_plugin.tasks._audio import AudioFields, AudioTaskMixin


@dataclass
class D2VAudioFinetuningConfig(AudioFields, AudioFinetuningConfig):
    """fairseq's fields, AudioFields, and what to do about unknown symbols."""

    unknown_symbols: ChoiceEnum(["error", "unk"]) = field(
        default="error",
        metadata={"help": "a label symbol outside the dictionary is an error, or becomes <unk> as in fairseq"},
    )


@register_task("d2v_audio_finetuning", dataclass=D2VAudioFinetuningConfig)
class D2VAudioFinetuningTask(AudioTaskMixin, AudioFinetuningTask):
    """Waveforms from ``<data>/<split>.tsv`` with the transcripts in ``<data>/<split>.<labels>``.

    Works with fairseq's ``wav2vec_ctc`` model and ``ctc`` criterion. Utterances longer than ``max_sample_size`` are
    left out rather than cropped, since a crop no longer holds what its transcript says.
    """

    def __init__(self, cfg: D2VAudioFinetuningConfig):
        super().__init__(cfg)
        self.prepare()

    @property
    def dictionary_path(self) -> str:
        return os.path.join(self.cfg.target_dictionary or self.cfg.data, f"dict.{self.cfg.labels}.txt")

    def load_target_dictionary(self) -> Dictionary | None:
        if not self.cfg.labels:
            return None
        if not os.path.isfile(self.dictionary_path):
            raise UserError(
                f"{self.dictionary_path}: this dictionary does not exist; write it with `d2v manifest build --labels`, "
                "or set task.target_dictionary to the folder that holds it"
            )
        return Dictionary.load(self.dictionary_path)

    def load_dataset(self, split: str, task_cfg=None, **kwargs):
        task_cfg = task_cfg or self.cfg
        if not task_cfg.labels:
            raise UserError("task.labels is not set; give the suffix of the label files, task.labels=ltr")
        manifest = self.read_manifest(split, task_cfg.sample_rate, self.cfg.max_sample_size)
        dictionary = self.target_dictionary
        labels = load_labels(
            os.path.join(self.cfg.data, f"{split}.{task_cfg.labels}"),
            dictionary.indices,
            rows=manifest.rows,
            total=manifest.total,
            manifest_path=manifest.path,
            dictionary_path=self.dictionary_path,
            unknown=dictionary.unk() if str(self.cfg.unknown_symbols) == "unk" else None,
        )
        autoregressive = bool(getattr(task_cfg, "autoregressive", False))
        self.datasets[split] = TargetDataset(
            self.audio_dataset(split, manifest, task_cfg, pad=True),
            labels,
            pad=dictionary.pad(),
            eos=dictionary.eos(),
            add_to_input=autoregressive,
            # only CTC ties the transcript's length to the number of frames
            frames=None if autoregressive else self.conv_spec.frames(manifest.sizes),
        )
