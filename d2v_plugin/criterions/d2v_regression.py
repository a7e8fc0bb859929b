"""``d2v_regression``: sums the model's losses and logs them without reading the device in a training step."""

import logging
from dataclasses import dataclass, field
from typing import Dict

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass

from d2v_plugin.criterions.device_meter import log_mean
from d2v_plugin.errors import UserError
from d2v_plugin.method.collapse import check_finite

logger = logging.getLogger(__name__)

TRACKED = ("target_var", "pred_var", "ema_decay", "masked_pct", "model_norm", "ema_norm")
COUNTS = ("loss", "ntokens", "nsentences", "sample_size", "_world_size", "_watched")
SEEN = "_seen_"


@dataclass
class D2vRegressionConfig(FairseqDataclass):
    loss_weights: Dict[str, float] = field(default_factory=dict, metadata={"help": "weight per loss; default 1"})


@register_criterion("d2v_regression", dataclass=D2vRegressionConfig)
class D2vRegressionCriterion(FairseqCriterion):
    """Loss of a data2vec model: the weighted sum of ``net_output["losses"]``.

    Logs ``loss`` (per masked position), each loss by name when there are several, what the model tracks
    (``target_var`` and ``pred_var``, by modality and decoder when there are several, ``ema_decay``, norms), and what
    the collapse watch measured. In training, values stay on the
    device until fairseq prints them (its trainer reads the gradient norm at every update by itself).
    """

    def __init__(self, task, loss_weights=None):
        super().__init__(task)
        self.loss_weights = loss_weights or {}

    def forward(self, model, sample, reduce=True):
        """Returns ``(loss, sample_size, logging_output)``."""
        out = model(**sample["net_input"])
        losses = {k: self._weight(k) * v.float().sum() for k, v in out["losses"].items()}
        loss = sum(losses.values())
        if _looking_for_nan(model):
            check_finite(getattr(model, "num_updates", -1), loss)
        logging_output = {
            "loss": loss.detach(),
            "ntokens": out["sample_size"],
            "nsentences": sample["id"].numel(),
            "sample_size": out["sample_size"],
            "_world_size": 1,
        }
        logging_output.update(_tracked(out))
        if len(losses) > 1:
            logging_output.update({f"loss_{k}": v.detach() for k, v in losses.items()})
        watched = {k: v for k, v in out.get("logs", {}).items() if k not in TRACKED}
        if watched:
            # Only the first batch of an update looks, so the mean over those that did needs its own count.
            logging_output.update(watched, _watched=1)
        if not model.training:
            logging_output = {k: float(v) if torch.is_tensor(v) else v for k, v in logging_output.items()}
        return loss, out["sample_size"], logging_output

    def _weight(self, name):
        if not self.loss_weights:
            return 1.0
        if name not in self.loss_weights:
            raise UserError(f"criterion.loss_weights has no weight for the loss {name!r}; add it (0 switches it off)")
        return self.loss_weights[name]

    @staticmethod
    def reduce_metrics(logging_outputs):
        """Aggregate logging outputs over micro-batches and ranks."""
        totals = {k: sum(log.get(k, 0) for log in logging_outputs) for k in COUNTS}
        size = totals["sample_size"]
        for k in ("ntokens", "nsentences", "sample_size"):
            log_mean(k, totals[k])
        # a batch of short texts may have nothing masked
        size = size.clamp(min=1) if torch.is_tensor(size) else max(size, 1)
        log_mean("loss", totals["loss"] / size, size)
        for k in sorted({k for log in logging_outputs for k in log} - set(COUNTS)):
            total = sum(log.get(k, 0) for log in logging_outputs)
            if k.startswith("loss_"):
                log_mean(k, total / size, size)
            elif not k.startswith(SEEN):
                seen = totals["_world_size" if k in TRACKED else "_watched"]
                if any(SEEN + k in log for log in logging_outputs):
                    seen = sum(log.get(SEEN + k, 0) for log in logging_outputs)
                log_mean(k, total / seen)

    @staticmethod
    def logging_outputs_can_be_summed():
        return True


def _tracked(out):
    """What the model tracks. Values of one modality come with how often they came: not every batch has them."""
    tracked = {k: v for k, v in out.items() if k.startswith(TRACKED)}
    return tracked | {SEEN + k: 1 for k in tracked if k not in TRACKED}


def _looking_for_nan(model):
    """True while fairseq repeats a step whose gradients were not finite: then, and only then, read the loss."""
    while hasattr(model, "module"):  # DDP and fairseq's proxy around it
        model = model.module
    return any(type(getattr(h, "__self__", None)).__name__ == "NanDetector" for h in model._forward_hooks.values())
