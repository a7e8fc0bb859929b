"""Waveforms: strided convolutions, positions from convolutions, ALiBi."""

from dataclasses import dataclass, field

import torch.nn as nn

from d2v_plugin.errors import UserError
from d2v_plugin.modalities.base import ModalityEncoder
from d2v_plugin.modalities.config import ModalityConfig
from d2v_plugin.modalities.registry import register_modality
from d2v_plugin.modules.conv_spec import ConvSpec
from d2v_plugin.modules.feature_extractor import ConvFeatureExtractor
from d2v_plugin.modules.mel_init import mel_init_
from d2v_plugin.modules.norms import TransposeLast
from d2v_plugin.modules.padding import frame_padding_mask
from d2v_plugin.modules.positions import position_blocks
from d2v_plugin.ranges import check_amounts


@dataclass
class AudioConfig(ModalityConfig):
    type: str = "AUDIO"
    extractor_mode: str = "layer_norm"
    feature_encoder_spec: str = field(
        default="[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        metadata={"help": "(dim, kernel, stride) of each convolution, read as data"},
    )
    conv_pos_width: int = field(default=95, metadata={"help": "frames that the positional convolutions see together"})
    conv_pos_groups: int = 16
    conv_pos_depth: int = 5
    conv_pos_pre_ln: bool = field(default=False, metadata={"help": "layer norm before the positional convolutions"})
    conv_init: str = field(
        default="random", metadata={"help": "random, or mel: the first convolution starts as a filterbank (16 kHz)"}
    )


@register_modality("AUDIO")
class AudioEncoder(ModalityEncoder):
    """Waveforms (B, samples) at the task's sample rate."""

    config = AudioConfig

    def __init__(self, cfg, factory, task=None):
        spec = ConvSpec.parse(cfg.feature_encoder_spec, "model.modalities.audio.feature_encoder_spec")
        extracted, channels = spec[-1][0], factory.channels
        check_amounts("model.modalities.audio", cfg, ("conv_pos_width", "conv_pos_groups", "conv_pos_depth"), low=1)
        if channels % cfg.conv_pos_groups:
            raise UserError(f"conv_pos_groups {cfg.conv_pos_groups} must divide embed_dim, which is {channels}")
        extractor = ConvFeatureExtractor(spec, cfg.extractor_mode)
        if cfg.conv_init not in ("random", "mel"):
            raise UserError(f"conv_init must be random or mel, got {cfg.conv_init!r}")
        if cfg.conv_init == "mel":
            mel_init_(extractor.conv_layers)
        super().__init__(
            cfg,
            factory,
            local_encoder=extractor,
            project_features=nn.Sequential(TransposeLast(), nn.LayerNorm(extracted), nn.Linear(extracted, channels)),
            relative_positions=_positions(cfg, channels),
            decoder=factory.conv_decoder(cfg.decoder),
        )
        self.conv_spec = spec

    def frame_padding(self, T, padding_mask, source_lengths, device):
        return frame_padding_mask(self.conv_spec, T, padding_mask, source_lengths, device)

    def reset_parameters(self):
        super().reset_parameters()
        self.project_features[2].reset_parameters()


def _positions(cfg, channels):
    """(B, T, C) -> (B, T, C): ``conv_pos_depth`` convolutions that see ``conv_pos_width`` frames together."""
    convolutions = position_blocks(channels, cfg.conv_pos_width, cfg.conv_pos_groups, cfg.conv_pos_depth)
    positions = nn.Sequential(TransposeLast(), *convolutions, TransposeLast())
    return nn.Sequential(nn.LayerNorm(channels), positions) if cfg.conv_pos_pre_ln else positions
