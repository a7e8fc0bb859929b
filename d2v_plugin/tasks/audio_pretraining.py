"""Task ``d2v_audio_pretraining``: fairseq's ``audio_pretraining``, for which its configuration is a drop-in."""

from dataclasses import dataclass

from fairseq.tasks import register_task
from fairseq.tasks.audio_pretraining import AudioPretrainingConfig, AudioPretrainingTask

from d2v_plugin.tasks._audio import AudioFields, AudioTaskMixin


@dataclass
class D2VAudioPretrainingConfig(AudioFields, AudioPretrainingConfig):
    """fairseq's fields and AudioFields."""


@register_task("d2v_audio_pretraining", dataclass=D2VAudioPretrainingConfig)
class D2VAudioPretrainingTask(AudioTaskMixin, AudioPretrainingTask):
    """Waveforms from ``<data>/<split>.tsv``; see d2v_plugin/data/audio/manifest.py for what it may name.

    Differs from fairseq's task in that unusable files are skipped and counted (``max_bad_files``), other sample rates
    are converted (``resample``), crops and masks are functions of the seed, the epoch and the entry, and segments of
    long recordings are read.
    """

    # targets are normalised over time, which one frame has no variance for
    minimum_frames = 2
    pretrains = True

    def __init__(self, cfg: D2VAudioPretrainingConfig):
        super().__init__(cfg)
        self.prepare()

    def load_dataset(self, split: str, task_cfg=None, **kwargs):
        task_cfg = task_cfg or self.cfg
        manifest = self.read_manifest(split, task_cfg.sample_rate)
        pad = task_cfg.labels is not None or task_cfg.enable_padding
        self.datasets[split] = self.audio_dataset(split, manifest, task_cfg, pad)
