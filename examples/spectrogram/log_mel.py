"""The SPECTROGRAM modality: log-mel bands of a waveform, two frames to a position, instead of learned convolutions.

All that 2.0 does with a sequence (masks, clones, prenet, shared blocks, ALiBi, decoder, teacher, losses) is inherited;
this file says how a waveform becomes a sequence and which samples a position sees.
"""

from dataclasses import dataclass, field

import torch
import torch.nn as nn

from d2v_plugin.errors import UserError
from d2v_plugin.eval.mfcc import mel_filterbank
from d2v_plugin.modalities import register_modality
from d2v_plugin.modalities.base import ModalityEncoder
from d2v_plugin.modalities.config import ModalityConfig
from d2v_plugin.modules.conv_blocks import ConvNormGelu
from d2v_plugin.modules.conv_spec import ConvSpec
from d2v_plugin.modules.norms import TransposeLast
from d2v_plugin.modules.padding import frame_padding_mask


@dataclass
class SpectrogramConfig(ModalityConfig):
    """Defaults of the rest are those of every modality."""

    type: str = "SPECTROGRAM"
    sample_rate: int = field(default=16000, metadata={"help": "Hz, as the task's"})
    bands: int = field(default=80, metadata={"help": "mel bands, even between 60 Hz and half the sample rate"})
    stack: int = field(default=2, metadata={"help": "frames, 10 ms apart, that make one position"})
    conv_pos_width: int = field(default=31, metadata={"help": "positions that the positional convolution sees"})
    conv_pos_groups: int = 16


@register_modality("SPECTROGRAM")
class SpectrogramEncoder(ModalityEncoder):
    """Waveforms (B, samples); a position sees ``25 + 10 * (stack - 1)`` ms."""

    config = SpectrogramConfig

    def __init__(self, cfg, factory, task=None):
        if factory.channels % cfg.conv_pos_groups:
            raise UserError(f"conv_pos_groups {cfg.conv_pos_groups} must divide embed_dim, which is {factory.channels}")
        spectrogram = LogMel(cfg.sample_rate, cfg.bands, cfg.stack)
        width = cfg.bands * cfg.stack
        super().__init__(
            cfg,
            factory,
            local_encoder=spectrogram,
            project_features=nn.Sequential(nn.LayerNorm(width), nn.Linear(width, factory.channels)),
            relative_positions=nn.Sequential(
                TransposeLast(),
                ConvNormGelu(factory.channels, factory.channels, cfg.conv_pos_width, cfg.conv_pos_groups),
                TransposeLast(),
            ),
            decoder=factory.conv_decoder(cfg.decoder),
        )
        # read by the task, which needs to know how long a recording has to be
        self.conv_spec = ConvSpec([(cfg.bands, spectrogram.window, spectrogram.hop), (width, cfg.stack, cfg.stack)])

    def frame_padding(self, T, padding_mask, source_lengths, device):
        return frame_padding_mask(self.conv_spec, T, padding_mask, source_lengths, device)


class LogMel(nn.Module):
    """Log power in mel bands, 25 ms windows every 10 ms, consecutive frames stacked; nothing in it is learned."""

    def __init__(self, sample_rate, bands, stack):
        super().__init__()
        self.window, self.hop, self.stack = sample_rate // 40, sample_rate // 100, stack
        self.register_buffer("hann", torch.hann_window(self.window, periodic=False), persistent=False)
        self.register_buffer("filters", mel_filters(sample_rate, self.window, bands), persistent=False)

    @torch.no_grad()
    def forward(self, source):
        """(B, samples) -> (B, T, stack * bands) in the dtype of the source; computed in fp32."""
        frames = source.float().unfold(1, self.window, self.hop) * self.hann.float()
        power = torch.fft.rfft(frames).abs().square() @ self.filters.float().T
        logs = power.clamp(min=1e-6).log()
        T = logs.shape[1] // self.stack
        return logs[:, : T * self.stack].unflatten(1, (T, self.stack)).flatten(2).to(source.dtype)


def mel_filters(sample_rate, window, bands, lowest_hz=60.0):
    """(bands, window // 2 + 1) fp32 triangles, even on the mel scale up to half the sample rate."""
    filters = torch.from_numpy(mel_filterbank(sample_rate, window, bands, lowest_hz)).float()
    if (filters.sum(1) == 0).any():
        raise UserError(f"{bands} mel bands are too many for windows of {window} samples; lower bands")
    return filters
