"""data2vec 1.0 for audio, registered as ``data2vec_audio`` with upstream's fields, signature and state-dict keys."""

import logging

import torch
import torch.nn as nn
from fairseq.models import BaseFairseqModel, register_model

from d2v_plugin.errors import UserError
from d2v_plugin.method.collapse import CollapseWatch
from d2v_plugin.method.distillation import SelfDistillation
from d2v_plugin.method.ema import EMATeacher
from d2v_plugin.method.masking import MaskSource, span_mask
from d2v_plugin.method.regression import loss_scale, over_all_ranks, regression_loss
from d2v_plugin.method.targets import TargetRecipe
from d2v_plugin.models.data2vec_audio_config import Data2VecAudioConfig, validate
from d2v_plugin.modules.conv_spec import ConvSpec
from d2v_plugin.modules.feature_extractor import ConvFeatureExtractor
from d2v_plugin.modules.grad import scale_gradient
from d2v_plugin.modules.mel_init import mel_init_
from d2v_plugin.modules.padding import frame_padding_mask
from d2v_plugin.modules.transformer import TransformerEncoder

logger = logging.getLogger(__name__)


@register_model("data2vec_audio", dataclass=Data2VecAudioConfig)
class Data2VecAudioModel(SelfDistillation, BaseFairseqModel):
    """The student, and around it the EMA teacher made by the first ``set_num_updates``."""

    model_name = "data2vec_audio"

    def __init__(self, cfg):
        super().__init__()
        validate(cfg)
        self.cfg = cfg
        self.conv_spec = ConvSpec.parse(cfg.conv_feature_layers)
        extractor_dim = self.conv_spec[-1][0]

        self.feature_extractor = ConvFeatureExtractor(self.conv_spec, cfg.extractor_mode, cfg.conv_bias)
        if cfg.conv_init == "mel":
            mel_init_(self.feature_extractor.conv_layers)
        self.post_extract_proj = nn.Linear(extractor_dim, cfg.encoder_embed_dim)
        self.dropout_input = nn.Dropout(cfg.dropout_input)
        self.mask_emb = nn.Parameter(torch.empty(cfg.encoder_embed_dim).uniform_())
        self.encoder = TransformerEncoder(
            cfg.encoder_embed_dim,
            cfg.encoder_ffn_embed_dim,
            cfg.encoder_attention_heads,
            cfg.encoder_layers,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
            activation_dropout=cfg.activation_dropout,
            activation_fn=str(cfg.activation_fn),
            norm_first=cfg.layer_norm_first,
            layerdrop=cfg.encoder_layerdrop,
            conv_pos=cfg.conv_pos,
            conv_pos_groups=cfg.conv_pos_groups,
            pos_conv_depth=cfg.pos_conv_depth,
            checkpoint_activations=cfg.checkpoint_activations,
            deepnorm=cfg.self_attn_norm_type == "deepnorm",
        )
        # The order of modules is that of upstream: optimiser state in a checkpoint goes by position.
        self.layer_norm = nn.LayerNorm(extractor_dim)
        self.final_proj = nn.Linear(cfg.encoder_embed_dim, cfg.encoder_embed_dim)

        self.target_recipe = TargetRecipe.from_config(cfg, time_major=True)
        self.watch = CollapseWatch(cfg.min_target_var, cfg.min_pred_var, cfg.collapse_guard_updates, cfg.watch_interval)
        self.mask_source = MaskSource(None)  # recordings come without numbers here, so nothing is drawn by sample

    @classmethod
    def build_model(cls, cfg, task=None):
        return cls(cfg)

    # -- teacher ---------------------------------------------------------------------------------

    @property
    def _trailed(self):
        """The part of the student that the teacher copies."""
        return self.encoder if self._teacher_shares_features else self

    @property
    def _teacher_shares_features(self):
        return self.cfg.ema_transformer_only or self.cfg.ema_layers_only

    @property
    def _pretraining(self):
        return self.final_proj is not None

    def make_teacher(self):
        positions = [f"pos_conv.{k}" for k, _ in self.encoder.pos_conv.named_parameters()]
        return EMATeacher(self._trailed, shared=positions if self.cfg.ema_layers_only else ())

    def remove_pretraining_modules(self, last_layer=None):
        """Keep what fine-tuning needs; with ``last_layer``, blocks up to that one (0-based, included)."""
        self.final_proj = None
        self.ema = None
        if last_layer is not None:
            self.encoder.layers = nn.ModuleList(self.encoder.layers[: last_layer + 1])

    # -- masks -----------------------------------------------------------------------------------

    def _draw_mask(self, kind, lengths, width, min_masks):
        """Host-side (B, width) bool mask from the configuration keys ``mask_*`` or ``mask_channel_*``."""
        cfg = self.cfg
        time_only = {}
        if kind == "mask":
            time_only = {"require_same_masks": cfg.require_same_masks, "mask_dropout": cfg.mask_dropout}
        return span_mask(
            lengths,
            width,
            prob=getattr(cfg, f"{kind}_prob"),
            span=getattr(cfg, f"{kind}_length"),
            selection=str(getattr(cfg, f"{kind}_selection")),
            other=getattr(cfg, f"{kind}_other"),
            min_masks=min_masks,
            no_overlap=getattr(cfg, f"no_{kind}_overlap"),
            min_space=getattr(cfg, f"{kind}_min_space"),
            draws=self.mask_source.draws(None, len(lengths), self.num_updates, "cpu"),
            name=kind,
            **time_only,
        )

    def _zero_channels(self, x, mask_channel_indices):
        if mask_channel_indices is None:
            B, _, C = x.shape
            drawn = self._draw_mask("mask_channel", [C] * B, C, min_masks=0)
            mask_channel_indices = drawn.to(x.device, non_blocking=True).unsqueeze(1)
        return x.masked_fill(mask_channel_indices, 0)

    def apply_mask(self, x, padding_mask, mask_indices=None, mask_channel_indices=None, frame_lengths=None):
        """Replace masked frames by ``mask_emb`` and zero masked channels.

        Args:
            x: (B, T, C).
            padding_mask: (B, T) bool or None.
            mask_indices: (B, T) bool; drawn on the host when None.
            mask_channel_indices: (B, T or 1, C) bool; drawn when None.
            frame_lengths: B host integers; without them a padding mask is read from the device.
        Returns:
            ``(x, mask_indices, rows)``: the mask on the device of ``x`` and the flat indices
            ``b * T + t`` of masked frames; both None when ``mask_prob`` is 0.
        """
        B, T, _ = x.shape
        channels = self.cfg.mask_channel_prob > 0
        if channels and self.cfg.mask_channel_before:
            x = self._zero_channels(x, mask_channel_indices)
        rows = None
        if self.cfg.mask_prob > 0:
            if mask_indices is None:
                if frame_lengths is None:
                    frame_lengths = [T] * B if padding_mask is None else (~padding_mask).sum(1).tolist()
                mask_indices = self._draw_mask("mask", frame_lengths, T, min_masks=1)
            mask_indices = torch.as_tensor(mask_indices)
            rows = mask_indices.flatten().nonzero().squeeze(1).to(x.device, non_blocking=True)
            mask_indices = mask_indices.to(x.device, non_blocking=True)
            x = torch.where(mask_indices.unsqueeze(-1), self.mask_emb.to(x.dtype), x)
        else:
            mask_indices = None
        if channels and not self.cfg.mask_channel_before:
            x = self._zero_channels(x, mask_channel_indices)
        return x, mask_indices, rows

    # -- forward ---------------------------------------------------------------------------------

    def forward(
        self,
        source,
        padding_mask=None,
        mask=True,
        features_only=False,
        layer=None,
        mask_indices=None,
        mask_channel_indices=None,
        padding_count=None,
        source_lengths=None,
    ):
        """Pre-training step, or features.

        Args:
            source: (B, samples) waveforms at the task's sample rate.
            padding_mask: (B, samples) bool, True = padding.
            mask: draw (or take) masks.
            features_only: return after the student.
            layer: stop the student after this block (0-based).
            mask_indices: (B, T) bool, True = masked.
            mask_channel_indices: (B, T or 1, C) bool.
            padding_count: accepted for compatibility, unused (as upstream).
            source_lengths: B host integers, samples; spares reading ``padding_mask`` from the device.
        Returns:
            With ``features_only``: dict of ``x`` (B, T, C), ``padding_mask`` (B, T) or None, and
            ``layer_results``, a list of ``(x, None, ffn)`` each (T, B, C). Otherwise dict of ``losses``,
            ``sample_size`` (masked frames), ``target_var``, ``pred_var``, ``ema_decay`` (times 1000), and
            ``logs`` when the collapse watch looked.
        """
        extracted, features, frame_padding, frame_lengths = self._features(source, padding_mask, source_lengths)
        teacher_input = features
        x = self.dropout_input(features)
        rows = None
        if mask:
            x, mask_indices, rows = self.apply_mask(x, frame_padding, mask_indices, mask_channel_indices, frame_lengths)
        x, layer_results = self.encoder(x, frame_padding, layer=layer)
        if features_only:
            return {"x": x, "padding_mask": frame_padding, "layer_results": layer_results}
        if rows is None:
            raise UserError("pre-training needs masked frames: set model.mask_prob above 0 and call with mask=True")

        targets, teacher_top = self._targets(teacher_input, frame_padding, source, padding_mask, source_lengths, rows)
        pred = self.final_proj(x.flatten(0, 1).index_select(0, rows))
        result, regression = self._regress(pred, targets)
        if self.training and self.watch.due(self.num_updates):
            finite, target_std, pred_std = over_all_ranks(regression)
            self.watch.check(self.num_updates, finite, target_var=target_std, pred_var=pred_std)
            result["logs"] = self.watch.measure(frame_padding, feature=extracted, student=x, teacher=teacher_top)
        return result

    def _features(self, source, padding_mask, source_lengths):
        """Waveform to transformer input: ``(extracted, features, padding_mask, lengths)``, all by frame."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.cfg.feature_grad_mult > 0):
            extracted = self.feature_extractor(source).transpose(1, 2)
        if self.cfg.feature_grad_mult not in (0.0, 1.0):
            extracted = scale_gradient(extracted, self.cfg.feature_grad_mult)
        frame_padding, frame_lengths = frame_padding_mask(
            self.conv_spec, extracted.shape[1], padding_mask, source_lengths, extracted.device
        )
        return extracted, self.post_extract_proj(self.layer_norm(extracted)), frame_padding, frame_lengths

    @torch.no_grad()
    def _targets(self, features, frame_padding, source, padding_mask, source_lengths, rows):
        first = self.cfg.encoder_layers - self.cfg.average_top_k_layers
        if self._teacher_shares_features:
            encoder = self.ema.model
        else:
            _, features, frame_padding, _ = self.ema.model._features(source, padding_mask, source_lengths)
            encoder = self.ema.model.encoder
        _, results = encoder.extract_features(features, frame_padding, first_result=first)
        layers = [ffn.transpose(0, 1) for _, _, ffn in results]
        aware = self.cfg.length_aware_targets and frame_padding is not None
        lengths = (~frame_padding).sum(1) if aware else None
        return self.target_recipe(layers, rows, lengths), layers[-1]

    def _regress(self, pred, targets):
        scale = loss_scale(self.cfg.loss_scale, pred.shape[-1])
        regression = regression_loss(pred, targets, beta=self.cfg.loss_beta, scale=scale)
        result = {
            "losses": {"regression": regression.loss},
            "sample_size": pred.shape[0],
            "target_var": regression.target_std,
            "pred_var": regression.pred_std,
            "ema_decay": self.ema.decay * 1000,
        }
        return result, regression

    def extract_features(self, source, padding_mask, mask=False, layer=None):
        """The student's features: ``forward(features_only=True)``."""
        return self.forward(source, padding_mask, mask=mask, features_only=True, layer=layer)
