"""Classification of recordings, registered as ``audio_classification`` with upstream's fields and state-dict keys."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel, register_model

from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.body import load_body, pretrained_path
from d2v_plugin.fine_tuning.pooling import HeadSettings, clip_scores, projections
from d2v_plugin.fine_tuning.speech_settings import apply_to
from d2v_plugin.fine_tuning.waveform_mixup import draw_mixture, mixed_labels, mixed_waveforms
from d2v_plugin.models.audio_classification_config import AudioClassificationConfig, validate
from d2v_plugin.randomness import DrawStream, data_rank

BODIES = ("data2vec_audio", "data2vec_multi")


@register_model("audio_classification", dataclass=AudioClassificationConfig)
class AudioClassificationModel(BaseFairseqModel):
    """A pre-trained ``data2vec_audio`` (as upstream) or ``data2vec_multi`` for audio, and a head that scores classes.

    Args:
        cfg: ``AudioClassificationConfig``; ``cfg.d2v_args`` is set to the configuration of the body.
        num_classes: N.
    """

    def __init__(self, cfg, num_classes):
        super().__init__()
        validate(cfg)
        self.cfg = cfg
        self.head = HeadSettings(**{key: getattr(cfg, key) for key in HeadSettings.__dataclass_fields__})
        body = self._body(cfg)
        cfg.d2v_args = body.cfg
        self.takes_ids = body.name == "data2vec_multi"
        self.d2v_model = body.model
        self.final_dropout = nn.Dropout(cfg.final_dropout)
        self.proj, self.proj2 = projections(self.head, body.dim, num_classes)
        self.num_updates = 0
        self._mixtures = None
        # What fairseq's composite optimiser divides parameters by.
        for name, parameter in self.named_parameters():
            parameter.param_group = "projection" if name.startswith("proj") else "pretrained"

    @staticmethod
    def _body(cfg):
        def adjust(model_cfg):
            apply_to(model_cfg, cfg)
            if cfg.conv_feature_layers is not None and model_cfg.get("_name") == "data2vec_multi":
                model_cfg.modalities.audio.feature_encoder_spec = cfg.conv_feature_layers
            elif cfg.conv_feature_layers is not None:
                model_cfg.conv_feature_layers = cfg.conv_feature_layers

        return load_body(
            pretrained_path(cfg, cfg.d2v_args),
            cfg.d2v_args or None,
            kinds=BODIES,
            modality="AUDIO",
            normalize=cfg.normalize,
            weights=not cfg.no_pretrained_weights,
            adjust=adjust,
        )

    @classmethod
    def build_model(cls, cfg, task):
        if not hasattr(task, "labels"):
            raise UserError("model audio_classification needs a task with classes; set task._name=audio_classification")
        return cls(cfg, len(task.labels))

    def set_num_updates(self, num_updates):
        """Called by fairseq; says whether the body is still frozen."""
        super().set_num_updates(num_updates)
        self.num_updates = num_updates

    def load_state_dict(self, state_dict, strict=True, **kwargs):
        """The usual, with a line for people where the head is of another size."""
        for name in ("proj", "proj2"):
            for key, own in self.state_dict().items():
                given = state_dict.get(key)
                if key.startswith(f"{name}.") and given is not None and given.shape != own.shape:
                    raise UserError(
                        f"the checkpoint's head {key} is {tuple(given.shape)} and this model's {tuple(own.shape)}; use "
                        "the classes and the head it was trained with, or start from the pre-trained checkpoint"
                    )
        return super().load_state_dict(state_dict, strict=strict, **kwargs)

    # -- forward ---------------------------------------------------------------------------------

    def forward(self, source, padding_mask=None, label=None, source_lengths=None, id=None, mixture=None):
        """Scores of the classes, and with labels the loss.

        Args:
            source: (B, samples) waveforms at 16 kHz.
            padding_mask: (B, samples) bool, True = padding.
            label: (B, N), 1 for the classes of a recording.
            source_lengths: B host integers, samples; spares reading ``padding_mask`` from the device.
            id: (B,) int64 sample numbers; masks of a 2.0 body are then a function of seed, update and id.
            mixture: ``Mixture`` instead of the one that training draws.
        Returns:
            Without ``label``: (B, N) probabilities. With it: dict of ``losses``; ``sample_size``, the number of labels,
            of which mixed ones count by their share; and in evaluation ``_predictions`` and ``_targets``, (B, N) each.
        """
        if mixture is None:
            mixture = self._draw_mixture(len(source))
        if mixture is not None:
            source = mixed_waveforms(source, mixture, self.cfg.gain_mode)
            if label is not None and self.cfg.label_mixup:
                label = mixed_labels(label, mixture)
        x, keep = self._features(source, padding_mask, source_lengths, id)
        scores, are_logits = clip_scores(
            self.final_dropout(x), self.head, self.proj, self.proj2, training=self.training, keep=keep
        )
        if label is None:
            return torch.sigmoid(scores) if are_logits else scores
        scores, label = torch.nan_to_num(scores), label.float()
        if are_logits:
            loss = F.binary_cross_entropy_with_logits(scores.float(), label, reduction="none")
        else:
            # fp16's autocast refuses this one
            with torch.autocast(scores.device.type, enabled=False):
                loss = F.binary_cross_entropy(scores, label, reduction="none")
        result = {"losses": {"main": loss}, "sample_size": label.sum()}
        if not self.training:
            result["_predictions"] = torch.sigmoid(scores) if are_logits else scores
            result["_targets"] = label
        return result

    def _draw_mixture(self, batch):
        cfg = self.cfg
        if not self.training or cfg.source_mixup < 0 or cfg.mixup_prob <= 0:
            return None
        if self._mixtures is None:  # ranks are numbered only after models are built
            self._mixtures = DrawStream("mixup", data_rank())
        return draw_mixture(
            batch,
            self._mixtures.generator(),
            probability=cfg.mixup_prob,
            lowest=cfg.source_mixup,
            same=cfg.same_mixup,
        )

    def _features(self, source, padding_mask, source_lengths, id):
        """(B, T, C), zero in padding, and which frames count, (B, T) bool or None for all."""
        more = {"id": id, "mode": "AUDIO"} if self.takes_ids else {}
        frozen = self.num_updates < self.cfg.freeze_finetune_updates
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            found = self.d2v_model(
                source,
                padding_mask=padding_mask,
                mask=self.cfg.apply_mask and self.training,
                features_only=True,
                source_lengths=source_lengths,
                **more,
            )
            x, padding = found["x"], found["padding_mask"]
            if padding is None:
                return x, None
            x = x.masked_fill(padding.unsqueeze(-1), 0)
        return x, ~padding if self.cfg.length_aware_pooling else None
