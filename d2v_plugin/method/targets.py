"""The regression targets: the teacher's top layers, normalised, averaged, optionally normalised again."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from d2v_kernels import topk_instance_norm_mean

from d2v_plugin.errors import UserError


@dataclass(frozen=True)
class TargetRecipe:
    """Which normalisations make a target. Field names are upstream's configuration keys.

    Per layer, in this order: batch norm, instance norm, group norm, layer norm; then the mean over
    layers; then layer norm and instance norm of the mean. All in fp32, eps 1e-5, biased variance,
    without learned parameters. The recipes of the papers (one kind per layer, at most one after the
    mean) take the fused kernel; every other combination is computed step by step.

    ``time_major`` reproduces 1.0 audio, whose layers are (T, B, C): unless batch or instance norm has
    moved time last, group norm there runs over (B, C) of a frame and the final instance norm over B.
    ``length_aware_targets`` takes statistics over time from the frames of each recording alone, so that
    padding changes nothing; off by default, as upstream counts padded frames.
    Source: arXiv:2202.03555, section 3.3; arXiv:2212.07525, section 3.1.
    """

    layer_norm_target_layer: bool = False
    instance_norm_target_layer: bool = False
    batch_norm_target_layer: bool = False
    group_norm_target_layer: bool = False
    layer_norm_targets: bool = False
    instance_norm_targets: bool = False
    time_major: bool = False
    length_aware_targets: bool = False

    def __post_init__(self):
        if self.length_aware_targets and not self._fused:
            raise UserError(
                "length_aware_targets goes with at most one of instance_norm_target_layer and layer_norm_target_layer "
                "and one of layer_norm_targets and instance_norm_targets; switch the other normalisations off"
            )

    @classmethod
    def from_config(cls, cfg, time_major=False):
        flags = [f for f in cls.__dataclass_fields__ if f != "time_major"]
        return cls(**{f: bool(getattr(cfg, f, False)) for f in flags}, time_major=time_major)

    @torch.no_grad()
    def __call__(self, layers, rows=None, lengths=None):
        """Average K layers into targets.

        Args:
            layers: K tensors (B, T, C), any strides with channel stride 1.
            rows: (M,) flat indices ``b * T + t``; only these rows are returned.
            lengths: (B,) frames of each recording, or None; used by ``length_aware_targets``.
        Returns:
            (M, C) with rows, else (B, T, C); fp32, no gradient.
        """
        if self._fused:
            per_layer = _kind(self.instance_norm_target_layer, self.layer_norm_target_layer)
            final = _kind(self.instance_norm_targets, self.layer_norm_targets)
            lengths = lengths if self.length_aware_targets else None
            return topk_instance_norm_mean(layers, layer_norm=per_layer, final_norm=final, rows=rows, lengths=lengths)
        y = sum(self._normalise_layer(x.float()) for x in layers) / len(layers)
        if self.layer_norm_targets:
            y = F.layer_norm(y, y.shape[-1:])
        if self.instance_norm_targets:
            y = self._final_instance_norm(y)
        y = y.contiguous()
        return y if rows is None else y.flatten(0, 1).index_select(0, rows)

    @property
    def _batch_is_last_but_one(self):
        return self.time_major and not (self.batch_norm_target_layer or self.instance_norm_target_layer)

    @property
    def _fused(self):
        return not (
            self.batch_norm_target_layer
            or self.group_norm_target_layer
            or (self.instance_norm_target_layer and self.layer_norm_target_layer)
            or (self.instance_norm_targets and (self.layer_norm_targets or self._batch_is_last_but_one))
        )

    def _normalise_layer(self, x):
        if self.batch_norm_target_layer:
            x = F.batch_norm(x.transpose(1, 2), running_mean=None, running_var=None, training=True).transpose(1, 2)
        if self.instance_norm_target_layer:
            x = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        if self.group_norm_target_layer:
            if self._batch_is_last_but_one:
                x = F.layer_norm(x.transpose(0, 1), (x.shape[0], x.shape[2])).transpose(0, 1)
            else:
                x = F.layer_norm(x, x.shape[-2:])
        if self.layer_norm_target_layer:
            x = F.layer_norm(x, x.shape[-1:])
        return x

    def _final_instance_norm(self, y):
        if self._batch_is_last_but_one:
            return F.instance_norm(y.permute(1, 2, 0)).permute(2, 0, 1)
        return F.instance_norm(y.transpose(1, 2)).transpose(1, 2)


def _kind(instance, layer):
    return "instance" if instance else "layer" if layer else "none"
