"""One modality's part of ``data2vec_multi``: from raw input to the context that the shared blocks read.

A new modality is one small class::

    @dataclass
    class SpectrogramConfig(ModalityConfig):
        bands: int = 80                                   # its own settings; defaults of the rest may be overridden

    @register_modality("SPECTROGRAM")
    class SpectrogramEncoder(ModalityEncoder):
        config = SpectrogramConfig

        def __init__(self, cfg, factory, task=None):
            super().__init__(
                cfg,
                factory,
                local_encoder=...,                        # raw input -> (B, T, C) or what project_features takes
                project_features=...,                     # -> (B, T, C), nn.Identity() where nothing is to do
                fixed_positions=...,                      # FixedPositions(table) or None
                relative_positions=...,                   # module (B, T, C) -> (B, T, C), sees masked input; or None
                decoder=factory.conv_decoder(cfg.decoder),
            )

Override ``frame_padding`` where a padding mask of the input is not one of the sequence, and ``draw_mask`` for masks
other than spans and single positions. ``examples/spectrogram`` is a worked case with its data and configuration.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from d2v_plugin.errors import UserError
from d2v_plugin.method.kept import Masked, gather_clones
from d2v_plugin.method.masking import random_mask, random_masked_count, same_count, span_mask
from d2v_plugin.modalities.config import ModalityConfig
from d2v_plugin.modules.grad import scale_gradient
from d2v_plugin.modules.position_bias import PositionBias, alibi_slopes, grid_coordinates
from d2v_plugin.randomness import DrawStream


@dataclass
class Context:
    """What the shared blocks read.

    Attributes:
        x: (R, E + S, C): E extra tokens, then the kept positions (or all of them) of R rows.
        padding_mask: (R, E + S) bool, or None.
        bias_of: block number, counted over the whole depth with the prenet first -> ``PositionBias``; None without.
    """

    x: torch.Tensor
    padding_mask: torch.Tensor | None
    bias_of: object = None


class FixedPositions(nn.Module):
    """A table of positions that is not trained; key ``positions`` as upstream.

    Args:
        table: (T, C) fp32.
    """

    def __init__(self, table):
        super().__init__()
        self.positions = nn.Parameter(table.unsqueeze(0).clone(), requires_grad=False)

    def forward(self):
        """(1, T, C)."""
        return self.positions


class ModalityEncoder(nn.Module):
    """Local encoder, positions, masks, prenet and decoder of one modality.

    Args:
        cfg: a ``ModalityConfig``.
        factory: ``BlockFactory`` of the model.
        local_encoder, project_features, fixed_positions, relative_positions, decoder: see the module's docstring.
    """

    config = ModalityConfig
    modality = ""
    alibi_dims, alibi_distance = 1, "manhattan"

    def __init__(
        self,
        cfg,
        factory,
        *,
        local_encoder,
        project_features,
        fixed_positions=None,
        relative_positions=None,
        decoder=None,
    ):
        super().__init__()
        self.modality_cfg = cfg
        self.extra_tokens = _extra_tokens(cfg, factory.channels)
        # Parts register in the order of upstream: optimiser state in a checkpoint goes by position.
        self.local_encoder = local_encoder
        self.project_features = project_features
        self.fixed_positional_encoder = fixed_positions
        self.relative_positional_encoder = relative_positions
        self.context_encoder = factory.prenet(cfg, self.modality)
        self.decoder = decoder
        self.channels = factory.channels
        self._prob_draws = DrawStream(f"mask_prob:{self.modality}")
        self.alibi_scale = self.alibi_bias = None
        if cfg.use_alibi_encoder:
            self._make_alibi(cfg)

    def _make_alibi(self, cfg):
        layers = cfg.prenet_depth + cfg.model_depth if cfg.learned_alibi_scale_per_layer else 1
        heads = cfg.num_alibi_heads if cfg.learned_alibi_scale_per_head else 1
        scale = torch.full((layers, 1, heads, 1, 1), float(cfg.alibi_scale))
        self.alibi_scale = nn.Parameter(scale, requires_grad=cfg.learned_alibi_scale)
        # As integers, which .half() leaves alone: distances are counted in fp32.
        self.register_buffer("_slope_bits", alibi_slopes(cfg.num_alibi_heads).view(torch.int32), persistent=False)
        if cfg.learned_alibi:
            at = torch.arange(cfg.alibi_max_pos)[None]
            start = PositionBias(at, self._coordinates(cfg.alibi_max_pos), self._slopes(), self.alibi_distance)
            self.alibi_bias = nn.Parameter(start.dense())

    # -- what modalities may do their own way ----------------------------------------------------

    def frame_padding(self, T, padding_mask, source_lengths, device):
        """Padding of the input as padding of the sequence: ``(mask, lengths)``.

        Args:
            T: length of the sequence.
            padding_mask: of the input, True = padding, or None.
            source_lengths: B host integers in units of the input, or None.
        Returns:
            (B, T) bool or None, and B host integers or None where the host does not know them.
        """
        return padding_mask, source_lengths

    def draw_mask(self, draws, T, lengths):
        """Masks by the settings: ``(mask, count)``, (rows, T) bool and the masked positions of every row.

        Args:
            draws: ``SampleDraws`` or ``GeneratorDraws``.
            lengths: host integers, positions of each row that are not padding, or None when all are. Spans stay
                within them; with ``inverse_mask`` padding is therefore masked and predicted, as upstream does.
        """
        cfg = self.modality_cfg
        prob = self._mask_prob()
        if cfg.mask_length == 1:
            return random_mask(draws, T, prob), random_masked_count(T, prob)
        mask = span_mask(
            [T] * draws.rows if lengths is None else lengths,
            T,
            prob=1 - prob if cfg.inverse_mask else prob,
            span=cfg.mask_length,
            min_masks=1,
            mask_dropout=cfg.mask_dropout,
            add_masks=cfg.add_masks,
            draws=draws,
        )
        mask = ~mask if cfg.inverse_mask else mask
        # How many frames overlapping spans cover is known only when they are drawn: the one host read of this path,
        # which masks from the loader (precompute_mask_config) do without.
        return mask, int(mask[0].sum())

    def patchify(self, source):
        """What the reconstruction loss predicts: (B, T, width) fp32 of the input."""
        raise UserError(f"recon_loss is for images; set it to 0 for modality {self.modality}")

    def reset_parameters(self):
        """Called after the model's initialisation, for parts that start differently."""
        if self.decoder is not None:
            self.decoder.reset_parameters()

    # -- from input to context -------------------------------------------------------------------

    def local_features(self, source):
        """Raw input -> (B, T, C), before positions and masks."""
        grad = self.modality_cfg.local_grad_mult
        with torch.set_grad_enabled(torch.is_grad_enabled() and grad > 0):
            x = self.local_encoder(source)
        return self.project_features(x if grad in (0.0, 1.0) else scale_gradient(x, grad))

    def make_masked(
        self, local, clones, draws, padding_mask=None, lengths=None, precomputed_mask=None, masked_count=None
    ):
        """``Masked`` of the M clones of each sample of (B, T, C); None where nothing is given and ``mask_prob`` is 0.

        Args:
            draws: ``SampleDraws`` or ``GeneratorDraws`` of B * M rows.
            padding_mask, lengths: as ``frame_padding`` returned them. Spans need lengths on the host: where only the
                mask is there, it is read from the device.
            precomputed_mask: (B * M, T) instead of drawing.
            masked_count: masked positions in each of its rows; without it they are counted on the host, and rows that
                differ are made equal by masking or unmasking a few positions at random.
        """
        cfg, T, device = self.modality_cfg, local.shape[1], local.device
        if precomputed_mask is None:
            if cfg.mask_prob <= 0:
                return None
            if lengths is None and padding_mask is not None and cfg.mask_length > 1:
                lengths = (~padding_mask).sum(1).tolist()
            lengths = None if lengths is None else [n for n in lengths for _ in range(clones)]
            precomputed_mask, masked_count = self.draw_mask(draws, T, lengths)
        mask = torch.as_tensor(precomputed_mask)
        if mask.shape != (draws.rows, T):
            raise UserError(
                f"precomputed_mask must be ({draws.rows}, {T}), {clones} rows per sample, got {tuple(mask.shape)}; the "
                "task's precompute_mask_config and the model's clone_batch, patch size or convolutions disagree"
            )
        mask = mask.to(device, non_blocking=True).bool()
        if masked_count is None:
            # fairseq's audio task crops masks along with the recordings, so their rows differ by a few frames
            mask, masked_count = same_count(mask, draws)
        return Masked.of(mask, masked_count, cfg.keep_masked_pct, draws)

    def draw_channels(self, draws):
        """(R, C) bool, channels that are zero in a masked input (``mask_channel_prob``); None where there are none."""
        cfg = self.modality_cfg
        if cfg.mask_channel_prob <= 0:
            return None
        return span_mask(
            [self.channels] * draws.rows,
            self.channels,
            prob=cfg.mask_channel_prob,
            span=cfg.mask_channel_length,
            draws=draws,
            name="mask_channel",
        )

    def contextualize(self, local, padding_mask=None, masked=None, clones=1, remove_masked=False, channels=None):
        """Positions, masks, extra tokens and prenet.

        Args:
            local: (B, T, C) local features.
            padding_mask: (B, T) bool or None.
            masked: ``Masked`` of B * M rows, or None to use every position.
            clones: M.
            remove_masked: only kept positions go on; else masked ones are zeros or noise.
            channels: (R, C) bool, channels to set to zero wherever masked input is read.
        Returns:
            ``Context``.
        """
        x = local if self.fixed_positional_encoder is None else local + self.fixed_positional_encoder()
        T = x.shape[1]
        if masked is None:
            x = self._with_positions(_without(x, channels))
        else:
            if padding_mask is not None and clones > 1:
                padding_mask = padding_mask.repeat_interleave(clones, 0)
            if remove_masked:
                x = self._kept(x, masked, clones, channels)
            else:
                x = self._with_positions(self._hide(x, masked, clones, channels))
            if remove_masked and padding_mask is not None:
                padding_mask = masked.gather(padding_mask)
        if padding_mask is not None:
            # A row may have kept nothing but padding; attending to it is harmless, attending to nothing is NaN.
            padding_mask = padding_mask & ~padding_mask.all(1, keepdim=True)

        bias_of = self._bias_of(T, masked if remove_masked else None, x.device)
        extra = self.modality_cfg.num_extra_tokens
        if extra:
            x = torch.cat([self.extra_tokens.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
            padding_mask = None if padding_mask is None else F.pad(padding_mask, (extra, 0))
        return Context(self.context_encoder(x, padding_mask, bias_of), padding_mask, bias_of)

    def _with_positions(self, x):
        return x if self.relative_positional_encoder is None else x + self.relative_positional_encoder(x)

    def _kept(self, x, masked, clones, channels):
        if self.relative_positional_encoder is None:
            return gather_clones(x, masked, clones)
        # Relative positions come from convolutions, which must not see what is masked.
        positions = self.relative_positional_encoder(self._hide(x, masked, clones, channels))
        return gather_clones(x, masked, clones) + masked.gather(positions)

    def _hide(self, x, masked, clones, channels):
        """The clones of each sample with zeros (or noise) at masked positions and in masked channels."""
        cfg, x = self.modality_cfg, x.repeat_interleave(clones, 0)
        if cfg.encoder_zero_mask:
            x = x.masked_fill(masked.mask.unsqueeze(-1), 0)
        else:
            x = torch.where(masked.mask.unsqueeze(-1), torch.randn_like(x) * cfg.mask_noise_std, x)
        return _without(x, channels)

    def _mask_prob(self):
        """``mask_prob``, or a number between ``mask_prob_min`` and it: one for all, by seed and update."""
        low, high = self.modality_cfg.mask_prob_min, self.modality_cfg.mask_prob
        if low is None or not 0 <= low < high:
            return high
        return low + (high - low) * float(torch.rand((), generator=self._prob_draws.generator()))

    # -- ALiBi -----------------------------------------------------------------------------------

    def _slopes(self):
        return self._slope_bits.view(torch.float32)

    def _coordinates(self, T, device=None):
        return grid_coordinates(T, self.alibi_dims, device)

    def _bias_of(self, T, masked, device):
        """Block number -> ``PositionBias`` over extra tokens and kept positions, or None without ALiBi."""
        if self.alibi_scale is None:
            return None
        positions = torch.arange(T, device=device)[None] if masked is None else masked.keep
        positions = F.pad(positions, (self.modality_cfg.num_extra_tokens, 0), value=-1)
        if self.alibi_bias is not None:
            bias = PositionBias(positions, table=self.alibi_bias[0])
        else:
            bias = PositionBias(positions, self._coordinates(T, device), self._slopes(), self.alibi_distance)
        scale = self.alibi_scale.clamp_min(0)
        return lambda block: bias.scaled(scale[block if len(scale) > 1 else 0])

    # -- decoder ---------------------------------------------------------------------------------

    def decode(self, decoder, x, masked):
        """Predictions at masked positions.

        Args:
            decoder: this modality's, or the one that all share.
            x: (R, E + S, C), output of the shared blocks.
        Returns:
            (R * N, C), in the order of ``masked.rows``.
        """
        cfg = self.modality_cfg
        if cfg.decoder is not None:
            x = F.dropout(x, cfg.decoder.input_dropout, self.training)
        kept = x[:, cfg.num_extra_tokens :]
        noise = kept.new_empty(*masked.mask.shape, kept.shape[-1]).normal_(0, cfg.mask_noise_std)
        x = masked.restore(kept, noise)
        if cfg.decoder is not None and (cfg.decoder.add_positions_masked or cfg.decoder.add_positions_all):
            x = self._add_positions(x, masked, cfg.decoder)
        return decoder(x, masked.rows)

    def _add_positions(self, x, masked, cfg):
        if self.fixed_positional_encoder is None:
            raise UserError(
                f"decoder.add_positions_masked and add_positions_all need fixed positions, which modality "
                f"{self.modality} has none of; set them to false"
            )
        positions = self.fixed_positional_encoder()
        if cfg.add_positions_masked:
            x = x + positions * masked.mask.unsqueeze(-1)
        return x + positions if cfg.add_positions_all else x

    def remove_pretraining_modules(self, keep_decoder=False):
        """Drop what features do without."""
        if not keep_decoder:
            self.decoder = None

    def upgrade_state_dict_named(self, state_dict, name):
        """Published files of early code have the ALiBi scale without its layer axis."""
        key = f"{name}.alibi_scale"
        if key in state_dict and state_dict[key].dim() == 4:
            state_dict[key] = state_dict[key].unsqueeze(0)
        return state_dict


def _without(x, channels):
    """(R, T, C) with the masked channels (R, C) at zero."""
    return x if channels is None else x.masked_fill(channels.unsqueeze(1), 0)


def _extra_tokens(cfg, channels):
    """(1, E, C) learned tokens; zeros for the first if ``init_extra_token_zero``, else N(0, 1)."""
    if cfg.num_extra_tokens == 0:
        return None
    tokens = torch.zeros(1, cfg.num_extra_tokens, channels)
    nn.init.normal_(tokens[:, 1:] if cfg.init_extra_token_zero else tokens)
    return nn.Parameter(tokens)
