"""From the frames of a clip to one score for each class: the heads of ``audio_classification`` and how they pool.

Names and state-dict keys (``proj``, ``proj2``) are upstream's. Upstream pools over padding, too, after setting the
features there to zero; that is the default, and ``keep`` leaves padding out.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from d2v_plugin.errors import UserError
from d2v_plugin.modules.norms import TransposeLast

TWO_LAYERS = "proj_avg_proj"
# modes that project one vector a clip, not each frame
OF_THE_CLIP = ("average_before", "cls")
MODES = (
    "lin_softmax",
    "extremized_odds",
    "average_before",
    "average",
    "average_sigmoid",
    "max",
    "max_sigmoid",
    TWO_LAYERS,
    "cls",
)
# upstream's code has these, and calls a method for them that none of its models has
UNKNOWN_TO_ALL = ("summary_mha", "summary_proj")


@dataclass(frozen=True)
class HeadSettings:
    """The fields of ``audio_classification`` that the head depends on."""

    prediction_mode: str = "lin_softmax"
    eval_prediction_mode: str | None = None
    conv_kernel: int = -1
    conv_stride: int = 1
    two_convs: bool = False
    extreme_factor: float = 1.0

    def __post_init__(self):
        modes = {"prediction_mode": self.prediction_mode}
        if self.eval_prediction_mode:
            modes["eval_prediction_mode"] = self.eval_prediction_mode
        for key, mode in modes.items():
            if mode not in MODES:
                why = ", which no published code of data2vec has the parts for" if mode in UNKNOWN_TO_ALL else ""
                raise UserError(f"model.{key}={mode} is not known{why}; choose one of {', '.join(MODES)}")
            if self.kernel is not None and mode in OF_THE_CLIP:
                raise UserError(f"model.{key}={mode} has no frames left to convolve; leave model.conv_kernel out")
        if len({mode == TWO_LAYERS for mode in modes.values()}) > 1:
            raise UserError(
                f"model.prediction_mode={self.prediction_mode} and eval_prediction_mode={self.eval_prediction_mode} "
                f"need different layers; {TWO_LAYERS} goes with itself alone"
            )
        if self.conv_stride < 1:
            raise UserError(f"model.conv_stride must be at least 1, got {self.conv_stride}")

    @property
    def kernel(self):
        """Frames that the head's convolution sees, or None for a linear head."""
        least = 1 if self.two_convs else 2
        return self.conv_kernel if self.conv_kernel >= least and self.prediction_mode != TWO_LAYERS else None

    def mode(self, training):
        """The mode in force."""
        return self.prediction_mode if training or not self.eval_prediction_mode else self.eval_prediction_mode


def projections(settings, dim, classes):
    """``(proj, proj2)``, the second for ``proj_avg_proj`` only, else None.

    Args:
        dim: C of the features.
        classes: N.
    """
    if settings.prediction_mode == TWO_LAYERS:
        return nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, classes)
    if settings.kernel is None:
        return nn.Linear(dim, classes), None
    width = dim if settings.two_convs else classes
    convolution = nn.Conv1d(dim, width, settings.kernel, settings.conv_stride)
    after = [nn.GELU(), nn.Linear(dim, classes)] if settings.two_convs else []
    return nn.Sequential(TransposeLast(), convolution, TransposeLast(), *after), None


def clip_scores(x, settings, proj, proj2=None, *, training, keep=None):
    """One score a class.

    Args:
        x: (B, T, C) features.
        proj, proj2: as ``projections`` made them.
        keep: (B, T) bool, frames that count; None for all of them.
    Returns:
        ``(scores, are_logits)``: (B, N), fp32 but for ``cls`` and ``proj_avg_proj``; probabilities where
        ``are_logits`` is False.
    Raises:
        UserError: a clip of fewer frames than the head's convolution sees.
    """
    mode = settings.mode(training)
    if mode == "cls":
        return proj(x[:, 0]), True
    if mode == "average_before":
        return proj(_mean(x, keep)).float(), True
    if settings.kernel is not None:
        if x.shape[1] < settings.kernel:
            raise UserError(
                f"a batch of {x.shape[1]} frames and model.conv_kernel={settings.kernel}; lower it, or raise "
                "task.min_sample_size"
            )
        keep = _convolved(keep, settings)
    x = proj(x)
    if mode == TWO_LAYERS:
        return proj2(_mean(x, keep)), True
    x = x.float()
    if mode.endswith("_sigmoid"):
        x = torch.sigmoid(x)
        return (_max(x, keep) if mode == "max_sigmoid" else _mean(x, keep)), False
    if mode == "lin_softmax":
        return _linear_softmax(x, keep), True
    if mode == "extremized_odds":
        return _without(x, keep, 0.0).sum(1) * settings.extreme_factor, True
    return (_max(x, keep) if mode == "max" else _mean(x, keep)), True


def _convolved(keep, settings):
    """Frames of the convolution's output that saw kept frames alone: (B, T') bool."""
    if keep is None:
        return None
    kept = keep[:, settings.kernel - 1 :: settings.conv_stride].clone()
    kept[:, 0] = True  # a clip shorter than the kernel has this one
    return kept


def _without(x, keep, value):
    return x if keep is None else x.masked_fill(~keep.unsqueeze(-1), value)


def _mean(x, keep):
    if keep is None:
        return x.mean(1)
    return _without(x, keep, 0.0).sum(1) / keep.sum(1, keepdim=True)


def _max(x, keep):
    return _without(x, keep, -torch.inf).amax(1)


def _linear_softmax(x, keep):
    """The mean of the frames' probabilities p weighted by themselves, ``sum p^2 / sum p``, as a logit.

    (Wang, Li and Metze, "A comparison of five multiple instance learning pooling functions", arXiv:1810.09050.)
    """
    log_p = _without(F.logsigmoid(x), keep, -torch.inf)
    y = (torch.logsumexp(2 * log_p, 1) - torch.logsumexp(log_p, 1)).clamp(max=0)  # log of the mean
    return y - torch.log(-torch.expm1(y))
