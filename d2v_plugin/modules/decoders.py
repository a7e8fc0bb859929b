"""Decoders: from the encoder's output at kept positions to predictions at masked ones. State-dict keys as upstream."""

import torch.nn as nn

from d2v_plugin.errors import UserError
from d2v_plugin.modules.blocks import CrossBlock
from d2v_plugin.modules.conv_blocks import ConvNormGelu
from d2v_plugin.modules.init import bert_init

TRANSFORMER_HEADS = 8


class ConvDecoder(nn.Module):
    """Convolutions over the full sequence, kept positions filled in and masked ones noise, then a projection.

    Args:
        cfg: ``DecoderConfig``.
        channels: C of the input and of the prediction.
        side: None for a sequence; for images the number of patches along each side of the square.
    Source: arXiv:2212.07525, section 3.2.
    """

    def __init__(self, cfg, channels, side=None):
        super().__init__()
        check_groups(cfg, channels)
        self.side, self.residual = side, cfg.decoder_residual
        dims = 1 if side is None else 2
        self.blocks = nn.Sequential(
            *[
                ConvNormGelu(
                    cfg.decoder_dim if i else channels, cfg.decoder_dim, cfg.decoder_kernel, cfg.decoder_groups, dims
                )
                for i in range(cfg.decoder_layers)
            ]
        )
        self.proj = _projection(cfg, channels) if side is None else nn.Linear(cfg.decoder_dim, channels)

    def forward(self, x, rows):
        """Predict at some positions.

        Args:
            x: (R, T, C), the whole sequence.
            rows: (N,) int64, flat positions ``r * T + t`` to predict.
        Returns:
            (N, C).
        """
        R, T, _ = x.shape
        x = x.transpose(1, 2)
        if self.side is not None:
            x = x.unflatten(-1, (self.side, self.side))
        for block in self.blocks:
            y = block(x)
            x = y + x if self.residual and x.shape[1] == y.shape[1] else y
        x = x.movedim(1, -1).reshape(R * T, -1)
        # projected where it is asked for only: the rest would be thrown away
        return self.proj(x.index_select(0, rows))

    def reset_parameters(self):
        """The projection starts as ``nn.Linear`` does, not as BERT."""
        for module in self.proj.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()


class TransformerDecoder(nn.Module):
    """Transformer blocks over the full sequence between two projections.

    Args:
        stack: ``BlockStack`` of width ``cfg.decoder_dim``.
    """

    def __init__(self, cfg, channels, stack):
        super().__init__()
        self.input_proj = nn.Linear(channels, cfg.decoder_dim)
        self.encoder = stack
        self.proj = nn.Linear(cfg.decoder_dim, channels)

    def forward(self, x, rows):
        """(R, T, C) and flat positions (N,) -> (N, C)."""
        x = self.encoder(self.input_proj(x))
        return self.proj(x.flatten(0, 1).index_select(0, rows))

    def reset_parameters(self):
        self.apply(bert_init)


class CrossDecoder(nn.Module):
    """Positions of masked patches attend to the encoder's output: no mask tokens, no full sequence."""

    def __init__(self, cfg, channels):
        super().__init__()
        self.input_proj = nn.Linear(channels, cfg.decoder_dim)
        self.blocks = nn.Sequential(
            *[
                CrossBlock(cfg.decoder_dim, channels, TRANSFORMER_HEADS, residual=i > 0)
                for i in range(cfg.decoder_layers)
            ]
        )
        self.proj = nn.Linear(cfg.decoder_dim, channels)

    def forward(self, x, memory):
        """Queries (R, N, C) and memory (R, S, C) -> (R * N, C)."""
        x = self.input_proj(x)
        for block in self.blocks:
            x = block(x, memory)
        return self.proj(x).flatten(0, 1)

    def reset_parameters(self):
        self.apply(bert_init)


def check_groups(cfg, channels):
    """Raises ``UserError`` where the convolutions' groups do not divide their widths."""
    for name, width in (("the model's embed_dim", channels), ("decoder_dim", cfg.decoder_dim)):
        if width % cfg.decoder_groups:
            raise UserError(f"decoder_groups {cfg.decoder_groups} must divide {name}, which is {width}")


def _projection(cfg, channels):
    """One linear layer, or ``projection_layers`` of them with GELU between, the first ``projection_ratio`` wider."""
    widths = [cfg.decoder_dim]
    if cfg.projection_layers > 1:
        widths += [int(cfg.decoder_dim * cfg.projection_ratio)] * (cfg.projection_layers - 1)
    layers = []
    for n_in, n_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(n_in, n_out), nn.GELU()]
    layers.append(nn.Linear(widths[-1], channels))
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]
