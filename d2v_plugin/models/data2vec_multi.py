"""data2vec 2.0, registered as ``data2vec_multi`` with upstream's fields, signature and state-dict keys."""

import torch
import torch.nn as nn
from fairseq.models import BaseFairseqModel, register_model

from d2v_plugin.errors import UserError
from d2v_plugin.method.collapse import CollapseWatch
from d2v_plugin.method.distillation import SelfDistillation
from d2v_plugin.method.ema import EMATeacher
from d2v_plugin.method.masking import MaskSource
from d2v_plugin.method.regression import loss_scale, over_all_ranks, regression_loss
from d2v_plugin.method.targets import TargetRecipe
from d2v_plugin.modalities import encoder_class, modality_name
from d2v_plugin.modalities.factory import BlockFactory
from d2v_plugin.models.data2vec_multi_config import Data2VecMultiConfig, validate
from d2v_plugin.modules.blocks import LayerDrop
from d2v_plugin.modules.decoders import ConvDecoder
from d2v_plugin.modules.init import bert_init, xavier_init

UPSTREAM_MODALITIES = ("AUDIO", "IMAGE", "TEXT")


@register_model("data2vec_multi", dataclass=Data2VecMultiConfig)
class Data2VecMultiModel(SelfDistillation, BaseFairseqModel):
    """Encoders of one or more modalities, the blocks they share, and the EMA teacher.

    Args:
        cfg: ``Data2VecMultiConfig``.
        modalities: names.
        skip_ema: build no teacher.
        task: the TEXT modality takes its vocabulary from it.
    """

    model_name = "data2vec_multi"

    def __init__(self, cfg, modalities, skip_ema=False, task=None):
        super().__init__()
        modalities = [modality_name(m) for m in modalities]
        validate(cfg, modalities)
        self.cfg, self.modalities = cfg, modalities
        factory = BlockFactory(cfg)
        # The order of modules is that of upstream: optimiser state in a checkpoint goes by position.
        self.modality_encoders = nn.ModuleDict(
            {name: encoder_class(name)(getattr(cfg.modalities, name.lower()), factory, task) for name in modalities}
        )
        self.dropout_input = nn.Dropout(cfg.dropout_input)
        self.blocks = nn.ModuleList(factory.blocks(cfg.depth, cfg.start_drop_path_rate, cfg.end_drop_path_rate))
        self.norm = factory.norm(cfg.embed_dim) if cfg.layer_norm_first else None
        self.apply(xavier_init if cfg.mae_init else bert_init)
        for encoder in self.modality_encoders.values():
            encoder.reset_parameters()

        self.shared_decoder = self.recon_proj = None
        if not skip_ema:
            self.ema = self.make_teacher()
            if cfg.shared_decoder is not None:
                self.shared_decoder = ConvDecoder(cfg.shared_decoder, cfg.embed_dim).apply(xavier_init)
            if cfg.recon_loss > 0:
                self.recon_proj = nn.Linear(cfg.embed_dim, cfg.embed_dim)
        self._mark_parameters()

        self.layerdrop = LayerDrop(cfg.layerdrop, "layerdrop")
        self.target_recipe = TargetRecipe.from_config(cfg)
        self.watch = CollapseWatch(cfg.min_target_var, cfg.min_pred_var, cfg.collapse_guard_updates, cfg.watch_interval)
        self.mask_source = MaskSource(cfg.seed)

    @classmethod
    def build_model(cls, cfg, task=None):
        if getattr(task, "supported_modalities", None):
            modalities = task.supported_modalities
        elif cfg.supported_modality is not None:
            modalities = [cfg.supported_modality]
        else:
            modalities = UPSTREAM_MODALITIES
        return cls(cfg, modalities, skip_ema=cfg.skip_ema, task=task)

    def _mark_parameters(self):
        """What fairseq's ``composite`` optimiser reads: no weight decay on vectors and ALiBi scales."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1 or name.endswith(".bias") or "alibi_scale" in name:
                parameter.optim_overrides = {"optimizer": {"weight_decay_scale": 0}}
            if self.cfg.decoder_group and "decoder" in name:
                parameter.param_group = "decoder"

    # -- teacher ---------------------------------------------------------------------------------

    @property
    def _pretraining(self):
        return self.ema is not None

    @property
    def _trailed(self):
        return self.blocks if self.cfg.ema_encoder_only else self

    def make_teacher(self):
        strip = None if self.cfg.ema_encoder_only else _keep_what_teaches
        teacher = EMATeacher(self._trailed, strip=strip, fp32=not self.cfg.ema_same_dtype)
        teacher.decay = self.cfg.ema_decay
        return teacher

    def remove_pretraining_modules(self, modality=None, keep_decoder=False):
        """Keep what features and fine-tuning need: no teacher, no decoders, one modality if it is named."""
        self.ema = None
        self.cfg.clone_batch = 1
        self.recon_proj = None
        if not keep_decoder:
            self.shared_decoder = None
        for name in list(self.modality_encoders):
            if modality is not None and name != modality_name(modality):
                del self.modality_encoders[name]
            else:
                self.modality_encoders[name].remove_pretraining_modules(keep_decoder=keep_decoder)

    # -- forward ---------------------------------------------------------------------------------

    def forward(
        self,
        source,
        target=None,
        id=None,
        mode=None,
        padding_mask=None,
        mask=True,
        features_only=False,
        force_remove_masked=False,
        remove_extra_tokens=True,
        precomputed_mask=None,
        source_lengths=None,
        masked_count=None,
    ):
        """Pre-training step, or features.

        Args:
            source: waveforms (B, samples), images (B, c, H, W) or tokens (B, T), as ``mode`` says.
            target: what the teacher sees instead of ``source``, with a local encoder of its own.
            id: (B,) int64 sample numbers; masks are then a function of (seed, update, id, clone).
            mode: modality; needed where the model has several.
            padding_mask: as ``source`` without channels, bool, True = padding.
            mask: mask at all; without it only features can be had.
            features_only: return after the student, with every position unless ``force_remove_masked``.
            remove_extra_tokens: cut extra tokens off the features.
            precomputed_mask: (B * M, T) bool or 0/1, from the loader.
            source_lengths: B host integers in units of ``source``; spares reading ``padding_mask`` from the device.
            masked_count: masked positions in each row of ``precomputed_mask``; spares reading that.
        Returns:
            With ``features_only``: dict of ``x`` (R, T, C), ``padding_mask`` (R, T) or None, ``layer_results``, what
            targets are made of, each (R, E + T, C), and ``mask``, a ``Masked`` or None. Otherwise dict of ``losses``,
            ``sample_size`` (masked positions of all clones), ``masked_pct``, ``target_var``, ``pred_var``,
            ``ema_decay`` (times 1000), norms, and ``logs`` when the collapse watch looked.
        """
        encoder, mode = self._encoder(mode)
        clones = 1 if features_only else self.cfg.clone_batch
        local = encoder.local_features(source)
        B, T, _ = local.shape
        padding_mask = _checked_padding(padding_mask, source)
        padding_mask, lengths = encoder.frame_padding(T, padding_mask, source_lengths, local.device)
        masked = channels = None
        if mask:
            draws = self.mask_source.draws(id, B * clones, self.num_updates, local.device)
            masked = encoder.make_masked(local, clones, draws, padding_mask, lengths, precomputed_mask, masked_count)
            channels = encoder.draw_channels(draws)
        removed = masked is not None and (not features_only or force_remove_masked)
        if masked is None and not features_only:
            raise UserError("pre-training needs masked positions: set the modality's mask_prob above 0, mask=True")
        context = encoder.contextualize(local, padding_mask, masked, clones, removed, channels)
        x, layer_results = self._shared_blocks(context, encoder, collect=features_only)
        if features_only:
            return _features(x, context.padding_mask, layer_results, masked, encoder, remove_extra_tokens)
        if self.ema is None:
            raise UserError("this model has no teacher (skip_ema, or a fine-tuned one); call with features_only=True")

        layers, teacher_padding = self._teacher_layers(encoder, mode, local, padding_mask, source, target)
        targets = self._targets(layers, teacher_padding)
        predictions = self._predict(encoder, x, masked)
        result, regression = self._losses(mode, encoder, x, predictions, targets, masked, source)
        if self.training and self.watch.due(self.num_updates):
            finite, target_std, pred_std = over_all_ranks(regression)
            self.watch.check(self.num_updates, finite, target_var=target_std, pred_var=pred_std)
            result["logs"] = {
                **self.watch.measure(padding_mask, feature=local, teacher=layers[-1]),
                **self.watch.measure(context.padding_mask, student=x),
            }
        return result

    def _encoder(self, mode):
        mode = self.cfg.supported_modality if mode is None else mode
        if mode is None and len(self.modality_encoders) == 1:
            mode = next(iter(self.modality_encoders))
        if mode is None:
            raise UserError("the model has several modalities: call it with mode=, or set model.supported_modality")
        mode = modality_name(mode)
        if mode not in self.modality_encoders:
            raise UserError(
                f"the data is {mode} and the model has {', '.join(self.modality_encoders)}; "
                "set model.supported_modality to the modality of the task"
            )
        return self.modality_encoders[mode], mode

    def _shared_blocks(self, context, encoder, collect):
        x, results = self.dropout_input(context.x), []
        skipped = self.layerdrop.skipped(len(self.blocks), self.training)
        for i, block in enumerate(self.blocks):
            if not skipped[i]:
                x, result = block(x, context.padding_mask, _bias(context, encoder, i))
                if collect:
                    results.append(result)
        return x if self.norm is None else self.norm(x), results

    @torch.no_grad()
    def _teacher_layers(self, encoder, mode, local, padding_mask, source, target):
        """The K top layers of the teacher on the whole input, without extra tokens, (B, T, C) each; its padding."""
        teacher, dtype = self.ema.model, self.ema.dtype
        if self.cfg.ema_encoder_only:
            blocks = teacher
        else:
            blocks, encoder, local = teacher.blocks, teacher.modality_encoders[mode], local.to(dtype)
        if encoder.modality_cfg.ema_local_encoder and not self.cfg.ema_encoder_only:
            seen = source if target is None else target
            local = encoder.local_features(seen.to(dtype) if seen.is_floating_point() else seen)
        elif target is not None:
            raise UserError(
                "a target of its own (task.target_transform) needs a teacher that reads raw input: set "
                f"model.ema_encoder_only to false and model.modalities.{mode.lower()}.ema_local_encoder to true"
            )
        context = encoder.contextualize(local, padding_mask)
        x, layers, extra = context.x.to(dtype), [], encoder.modality_cfg.num_extra_tokens
        for i, block in enumerate(blocks):
            x, result = block(x, context.padding_mask, _bias(context, encoder, i))
            if i >= len(blocks) - self.cfg.average_top_k_layers:
                layers.append(result[:, extra:])
        return layers, padding_mask

    def _targets(self, layers, padding_mask):
        aware = self.cfg.length_aware_targets and padding_mask is not None
        return self.target_recipe(layers, lengths=(~padding_mask).sum(1) if aware else None)

    def _predict(self, encoder, x, masked):
        """Predictions of each decoder there is, the shared one first: a list of (R * N, C)."""
        decoders = [d for d in (self.shared_decoder, encoder.decoder) if d is not None]
        return [encoder.decode(decoder, x, masked) for decoder in decoders]

    # -- losses ----------------------------------------------------------------------------------

    def _losses(self, mode, encoder, x, predictions, targets, masked, source):
        """``(result, regression)``: the model's output, and the regression of the last decoder for the watch."""
        cfg, target_rows = self.cfg, masked.target_rows(self.cfg.clone_batch)
        sample_size, several = masked.rows.numel(), len(predictions) > 1
        suffix = "" if len(self.modalities) == 1 else f"_{mode}"
        losses, result = {}, {"sample_size": sample_size, "masked_pct": masked.share}
        if cfg.cls_loss > 0:
            losses["cls"] = self._cls_loss(encoder, x, targets, sample_size)
        if cfg.recon_loss > 0:
            recon = predictions[0] if self.recon_proj is None else self.recon_proj(predictions[0])
            losses["recon"] = self._regress(recon, encoder.patchify(source), cfg.recon_loss, target_rows).loss
        for i, prediction in enumerate(predictions):
            number = f"_{i}" if several else ""
            regression = self._regress(prediction, targets, cfg.d2v_loss, target_rows)
            if cfg.d2v_loss > 0:
                losses[f"{mode}_regression{number}"] = regression.loss
            result[f"pred_var{suffix}{number}"] = regression.pred_std
        result[f"target_var{suffix}"] = regression.target_std
        result["ema_decay"] = self.ema.decay * 1000
        norms = self.ema.norms() if cfg.log_norms else {}
        return {"losses": losses, **result, **norms}, regression

    def _regress(self, pred, targets, weight, rows):
        scale = loss_scale(self.cfg.loss_scale, pred.shape[-1]) * weight
        return regression_loss(pred, targets, beta=self.cfg.loss_beta, scale=scale, target_rows=rows)

    def _cls_loss(self, encoder, x, targets, sample_size):
        """The last extra token of each clone predicts the mean of its sample's targets over all positions."""
        cls = x[:, encoder.modality_cfg.num_extra_tokens - 1]
        clones = torch.arange(len(cls), device=x.device) // self.cfg.clone_batch
        return self._regress(cls, targets.mean(1), self.cfg.cls_loss * sample_size, clones).loss

    def extract_features(self, source, mode=None, padding_mask=None, mask=False, remove_extra_tokens=True):
        """The student's features: ``forward(features_only=True)``."""
        return self.forward(
            source,
            mode=mode,
            padding_mask=padding_mask,
            mask=mask,
            features_only=True,
            remove_extra_tokens=remove_extra_tokens,
        )


def _checked_padding(padding_mask, source):
    """As bool. Raises ``UserError`` where it is not one of (B, T) waveforms or tokens."""
    if padding_mask is None:
        return None
    if source.dim() == 2 and padding_mask.shape != source.shape:
        raise UserError(
            f"padding_mask must have the shape of source, {tuple(source.shape)}, got {tuple(padding_mask.shape)}"
        )
    return padding_mask.bool()


def _bias(context, encoder, block):
    """The ``PositionBias`` of shared block ``block``; ALiBi counts blocks from the prenet's first."""
    return None if context.bias_of is None else context.bias_of(encoder.modality_cfg.prenet_depth + block)


def _features(x, padding_mask, layer_results, masked, encoder, remove_extra_tokens):
    extra = encoder.modality_cfg.num_extra_tokens if remove_extra_tokens else 0
    padding_mask = None if padding_mask is None else padding_mask[:, extra:]
    return {"x": x[:, extra:], "padding_mask": padding_mask, "layer_results": layer_results, "mask": masked}


def _keep_what_teaches(teacher):
    """Take the decoders out of a copy of the model, and local encoders that the teacher shares with the student."""
    for encoder in teacher.modality_encoders.values():
        encoder.decoder = None
        if not encoder.modality_cfg.ema_local_encoder:
            encoder.local_encoder = encoder.project_features = None
