"""Configuration of ``audio_classification``: upstream's fields, ours, and what each may hold."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.models.wav2vec.wav2vec2 import MASKING_DISTRIBUTION_CHOICES
from omegaconf import II, MISSING

from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.waveform_mixup import GAIN_MODES
from d2v_plugin.ranges import check_amounts, check_rates, check_shares


@dataclass
class AudioClassificationConfig(FairseqDataclass):
    """Names and defaults are upstream's; the fields at the end are ours."""

    model_path: str = field(default=MISSING, metadata={"help": "checkpoint of pre-training"})
    no_pretrained_weights: bool = field(default=False, metadata={"help": "keep random weights: train from scratch"})
    dropout_input: float = field(default=0.0, metadata={"help": "dropout of the transformer's input"})
    final_dropout: float = field(default=0.0, metadata={"help": "dropout of the transformer's output"})
    dropout: float = field(default=0.0, metadata={"help": "dropout inside the transformer"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout inside the feed-forward"})

    apply_mask: bool = field(default=False, metadata={"help": "mask frames and channels in training"})
    mask_length: int = field(default=10, metadata={"help": "frames of a span"})
    mask_prob: float = field(default=0.5, metadata={"help": "share of frames to cover, if spans did not overlap"})
    mask_selection: MASKING_DISTRIBUTION_CHOICES = "static"
    mask_other: float = 0
    no_mask_overlap: bool = False
    mask_min_space: Optional[int] = 1
    require_same_masks: bool = True
    mask_dropout: float = field(default=0.0, metadata={"help": "share of the masked frames to show again"})

    mask_channel_length: int = 10
    mask_channel_prob: float = 0.0
    mask_channel_selection: MASKING_DISTRIBUTION_CHOICES = "static"
    mask_channel_other: float = 0
    no_mask_channel_overlap: bool = False
    freeze_finetune_updates: int = field(default=0, metadata={"help": "only the head learns up to this update"})
    feature_grad_mult: float = field(default=0.0, metadata={"help": "factor on the convolutions' gradient"})
    layerdrop: float = field(default=0.0, metadata={"help": "probability that a block is skipped"})
    mask_channel_min_space: Optional[int] = 1
    mask_channel_before: bool = False
    normalize: bool = II("task.normalize")
    data: str = II("task.data")
    d2v_args: Any = field(default=None, metadata={"help": "configuration of pre-training, kept for loading"})
    offload_activations: bool = False
    min_params_to_wrap: int = int(1e8)
    checkpoint_activations: bool = False
    ddp_backend: str = II("distributed_training.ddp_backend")

    prediction_mode: str = field(default="lin_softmax", metadata={"help": "see d2v_plugin/fine_tuning/pooling.py"})
    eval_prediction_mode: Optional[str] = field(default=None, metadata={"help": "another one for validation"})
    conv_kernel: int = field(default=-1, metadata={"help": "the head convolves this many frames"})
    conv_stride: int = 1
    two_convs: bool = field(default=False, metadata={"help": "a linear layer after the convolution"})
    extreme_factor: float = 1.0

    conv_feature_layers: Optional[str] = field(default=None, metadata={"help": "other convolutions than the body's"})

    mixup_prob: float = field(default=1.0, metadata={"help": "share of recordings that are mixed"})
    source_mixup: float = field(default=-1, metadata={"help": "least share of a recording in its mixture; < 0: none"})
    same_mixup: bool = field(default=True, metadata={"help": "one share for a whole batch"})
    label_mixup: bool = field(default=False, metadata={"help": "mix labels, too"})

    gain_mode: str = field(default="none", metadata={"help": f"loudness for mixing: {', '.join(GAIN_MODES)}"})

    drop_path: float = field(default=0.0, metadata={"help": "2.0: drop path of the last block, growing from 0"})
    zero_mask: bool = field(default=False, metadata={"help": "2.0: zeros in place of masked frames, else noise"})
    update_alibi: bool = field(default=True, metadata={"help": "2.0: the ALiBi scales learn"})
    length_aware_pooling: bool = field(default=False, metadata={"help": "padding does not count in the clip's score"})


SHARES = ("dropout_input", "final_dropout", "dropout", "attention_dropout", "activation_dropout", "layerdrop")
SHARES += ("mask_prob", "mask_channel_prob", "mask_dropout", "mixup_prob")


def validate(cfg):
    """Refuse values that cannot work, before anything is read. Raises ``UserError``."""
    check_shares("model", cfg, SHARES)
    check_rates("model", cfg, ("drop_path",))
    check_amounts("model", cfg, ("mask_length", "mask_channel_length"), low=1)
    check_amounts("model", cfg, ("feature_grad_mult", "freeze_finetune_updates"))
    if cfg.source_mixup > 1:
        raise UserError(f"model.source_mixup is a share of up to 1, or negative for none, got {cfg.source_mixup}")
    if cfg.gain_mode not in GAIN_MODES:
        raise UserError(f"model.gain_mode={cfg.gain_mode} is not known; choose one of {', '.join(GAIN_MODES)}")
