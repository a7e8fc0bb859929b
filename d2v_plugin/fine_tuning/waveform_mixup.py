"""Mixtures of two recordings, and of their labels, as ``audio_classification`` trains on them.

A mixture is ``(p a + (1 - p) b) / sqrt(p^2 + (1 - p)^2)``: the divisor keeps the energy of two recordings that have
nothing in common. p is the ratio that was drawn, or, with a gain mode, the one at which ``a`` is heard with that ratio
whatever the loudness of the two (Tokozume, Ushiku and Harada, "Learning from between-class examples for deep sound
recognition", arXiv:1711.10282).
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GAIN_MODES = ("none", "naive_rms", "RMSE", "A_weighting")
WINDOW = 2048  # samples, half of them shared with the next window
SAMPLE_RATE = 16_000
FLOOR_DB = -80.0
SMALLEST_RATIO = 1e-6


@dataclass(frozen=True)
class Mixture:
    """What is mixed with what: ``ratio`` (B,) fp32, 1 where a recording stays as it is; ``partner`` (B,) int64."""

    ratio: Tensor
    partner: Tensor


def draw_mixture(batch, generator, *, probability, lowest, same):
    """A ``Mixture`` on the CPU.

    Args:
        batch: B.
        generator: ``torch.Generator``.
        probability: of a recording to be mixed.
        lowest: ratios are uniform from here to 1.
        same: one ratio for the batch.
    """
    mixed = torch.rand(batch, generator=generator) < probability
    lowest = max(lowest, SMALLEST_RATIO)
    ratio = lowest + (1 - lowest) * torch.rand(1 if same else batch, generator=generator)
    return Mixture(torch.where(mixed, ratio, 1.0), torch.randperm(batch, generator=generator))


def mixed_waveforms(source, mixture, gain_mode="none"):
    """(B, samples) -> the same, in the dtype of ``source``."""
    ratio = mixture.ratio.to(source.device)
    partner = mixture.partner.to(source.device)
    p = ratio
    if gain_mode != "none":
        gain = loudness(source, gain_mode)
        p = 1 / (1 + 10 ** ((gain - gain[partner]) / 20) * (1 - ratio) / ratio)
    p = p.to(source.dtype).unsqueeze(1)
    return (p * source + (1 - p) * source[partner]) / torch.sqrt(p**2 + (1 - p) ** 2)


def mixed_labels(label, mixture):
    """(B, N) fp32: the labels of both, weighted by the ratio."""
    ratio = mixture.ratio.to(label.device).unsqueeze(1)
    label = label.float()
    return label * ratio + (1 - ratio) * label[mixture.partner.to(label.device)]


def loudness(source, mode):
    """(B,) fp32: how loud the loudest window is, in dB.

    ``naive_rms`` is the root mean square of the whole, which upstream uses as if it were dB.
    """
    source = source.float()
    if mode == "naive_rms":
        return source.pow(2).mean(-1).sqrt()
    if source.shape[-1] < WINDOW:
        source = F.pad(source, (0, WINDOW - source.shape[-1]))
    windows = source.unfold(-1, WINDOW, WINDOW // 2)
    if mode == "RMSE":
        power = windows.pow(2).mean(-1)
    else:
        spectrum = torch.fft.rfft(torch.hann_window(WINDOW, device=source.device) * windows)
        power = spectrum.abs().pow(2).double() @ _hearing(source.device)
    return 10 * torch.log10(power.clamp_min(10 ** (FLOOR_DB / 10))).amax(-1).float()


@functools.lru_cache(maxsize=8)
def _hearing(device):
    """(WINDOW / 2 + 1,) fp64: the A-weighting (IEC 61672) of each frequency, as a factor on its power."""
    squares = torch.linspace(0, SAMPLE_RATE // 2, WINDOW // 2 + 1, dtype=torch.float64).pow(2)
    squares[0] = 1.0
    decibel = 2 + 20 * (
        2 * math.log10(12194)
        + 2 * squares.log10()
        - (squares + 12194**2).log10()
        - (squares + 20.6**2).log10()
        - 0.5 * (squares + 107.7**2).log10()
        - 0.5 * (squares + 737.9**2).log10()
    )
    return (10 ** (decibel.clamp_min(FLOOR_DB) / 10)).to(device)
