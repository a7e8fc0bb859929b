"""Waveform to features: the strided convolutions that both versions of audio start with."""

import torch.nn as nn

from d2v_plugin.errors import UserError
from d2v_plugin.modules.norms import Fp32GroupNorm, Fp32LayerNorm, TransposeLast

EXTRACTOR_MODES = ("default", "layer_norm")


class ConvFeatureExtractor(nn.Module):
    """Strided convolutions, each followed by an optional norm and GELU.

    Args:
        spec: ``ConvSpec``.
        mode: ``default`` (group norm, one group a channel, after the first convolution: statistics run
            over time, so padding changes the result) or ``layer_norm`` (over channels after every one).
        bias: whether convolutions have a bias.
    Source: wav2vec 2.0, arXiv:2006.11477, section 4.2; state-dict keys as in fairseq.
    """

    def __init__(self, spec, mode="default", bias=False, dropout=0.0):
        super().__init__()
        if mode not in EXTRACTOR_MODES:
            raise UserError(f"extractor_mode must be one of {', '.join(EXTRACTOR_MODES)}, got {mode!r}")
        self.spec = spec
        channels = [1] + [dim for dim, _, _ in spec]
        self.conv_layers = nn.ModuleList(
            _conv_block(channels[i], dim, kernel, stride, _norm(mode, i, dim), bias, dropout)
            for i, (dim, kernel, stride) in enumerate(spec)
        )

    def forward(self, source):
        """(B, samples) -> (B, C, T).

        Raises:
            UserError: fewer samples than one frame sees.
        """
        if source.shape[-1] < self.spec.receptive_field:
            raise UserError(
                f"a sample of {source.shape[-1]} samples is shorter than the {self.spec.receptive_field} that one "
                "frame needs; raise task.min_sample_size or drop the recording"
            )
        x = source.unsqueeze(1)
        for block in self.conv_layers:
            x = block(x)
        return x


def _norm(mode, index, dim):
    if mode == "layer_norm":
        return nn.Sequential(TransposeLast(), Fp32LayerNorm(dim), TransposeLast())
    return Fp32GroupNorm(dim, dim) if index == 0 else None


def _conv_block(n_in, n_out, kernel, stride, norm, bias, dropout):
    conv = nn.Conv1d(n_in, n_out, kernel, stride=stride, bias=bias)
    nn.init.kaiming_normal_(conv.weight)
    return nn.Sequential(*[m for m in (conv, nn.Dropout(dropout), norm, nn.GELU()) if m is not None])
