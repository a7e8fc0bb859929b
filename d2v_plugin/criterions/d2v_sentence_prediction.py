"""``d2v_sentence_prediction``: fairseq's ``sentence_prediction`` with scores over the whole validation set.

fairseq gathers predictions as lists and says that its logs can be summed, so several processes add the lists up number
by number and score the sums; it takes labels for integers; and it rounds every score to one decimal, so that the best
checkpoint is a tie of many.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.criterions.sentence_prediction import SentencePredictionConfig
from fairseq.logging import metrics

from d2v_plugin.errors import UserError
from d2v_plugin.eval import label_scores

DECIMALS = 2
POSITIVE = "1"
CONFUSION, PREDICTED, WANTED = "_confusion", "_predicted", "_wanted"


@dataclass
class D2vSentencePredictionConfig(SentencePredictionConfig):
    """fairseq's fields."""


@register_criterion("d2v_sentence_prediction", dataclass=D2vSentencePredictionConfig)
class D2vSentencePredictionCriterion(FairseqCriterion):
    """Cross-entropy over classes, or squared error with ``regression_target``; sums over the batch.

    Logs ``loss`` (bits per sample), ``accuracy``, and what is asked for: ``mcc``; ``f1`` and ``acc_and_f1`` of the
    class called "1"; ``pearson``, ``spearman`` and ``pearson_and_spearman``; all in per cent.
    """

    def __init__(self, cfg: D2vSentencePredictionConfig, task):
        super().__init__(task)
        self.cfg = cfg
        self.positive = _check(cfg, task)

    def forward(self, model, sample, reduce=True):
        """Returns ``(loss, sample_size, logging_output)``."""
        cfg = self.cfg
        if cfg.classification_head_name not in (getattr(model, "classification_heads", None) or {}):
            raise UserError(
                f"the model has no classification head {cfg.classification_head_name!r}; train with task "
                "d2v_sentence_prediction or sentence_prediction and a model that can have one "
                "(data2vec_text_classification, data2vec_text, roberta)"
            )
        if sample.get("target") is None:
            raise UserError("this split has no labels, so nothing can be scored; prepare it again with its labels")
        net_input, head = sample["net_input"], cfg.classification_head_name
        logits, _ = model(**net_input, features_only=True, classification_head_name=head)  # (B, K)
        targets = sample["target"].view(-1)
        logging_output = {
            "ntokens": sample["ntokens"],
            "nsentences": targets.numel(),
            "sample_size": targets.numel(),
        }
        if cfg.regression_target:
            values = logits.view(-1).float()
            loss = F.mse_loss(values, targets.float(), reduction="sum")
            if not model.training:
                logging_output |= {PREDICTED: values.tolist(), WANTED: targets.tolist()}
        else:
            loss = F.cross_entropy(logits.float(), targets, reduction="sum")
            predictions = logits.argmax(-1)
            logging_output["ncorrect"] = (predictions == targets).sum()
            if not model.training:
                counts = label_scores.confusion(predictions, targets, logits.shape[-1])
                logging_output[CONFUSION] = _ordered(counts, self.positive)
        logging_output["loss"] = loss.detach()
        if not model.training:
            logging_output |= {name: 1 for name in SCORES if getattr(cfg, name)}
        return loss, targets.numel(), logging_output

    def logging_outputs_can_be_summed(self):
        """Not the values of a validation set; in training there are none."""
        return self.training or not self.cfg.regression_target

    @staticmethod
    def reduce_metrics(logging_outputs) -> None:
        """Aggregate logging outputs over micro-batches and processes."""
        total = {k: sum(log.get(k, 0) for log in logging_outputs) for k in ("loss", "sample_size", "ncorrect")}
        size = total["sample_size"]
        if not size:
            return
        metrics.log_scalar("loss", total["loss"] / size / math.log(2), size, round=3)
        if any("ncorrect" in log for log in logging_outputs):
            metrics.log_scalar("accuracy", 100.0 * total["ncorrect"] / size, size, round=DECIMALS)
        wanted = [name for name in SCORES if any(name in log for log in logging_outputs)]
        counts = [log[CONFUSION] for log in logging_outputs if CONFUSION in log]
        if counts:
            metrics.log_scalar_sum(CONFUSION, sum(counts).cpu())
        for key in (PREDICTED, WANTED):
            values = [value for log in logging_outputs for value in log.get(key, ())]
            if values:
                metrics.log_concat_tensor(key, torch.tensor(values, dtype=torch.float64))
        for name in wanted:
            for key, score in SCORES[name].items():
                metrics.log_derived(key, lambda meters, score=score: round(100 * score(meters), DECIMALS))


def _ordered(counts, positive):
    """(K, K) counts with the class whose F1 is wanted as the last; all other scores are the same in any order."""
    if positive is None:
        return counts
    order = [k for k in range(len(counts)) if k != positive] + [positive]
    return counts[order][:, order]


def _check(cfg, task):
    """The number of the class called "1" where F1 is asked for, else None.

    Raises:
        UserError: a score that does not go with the labels.
    """
    if cfg.regression_target:
        wrong = [name for name in ("report_mcc", "report_acc_and_f1") if getattr(cfg, name)]
        if wrong:
            raise UserError(
                f"criterion.{wrong[0]} scores classes and criterion.regression_target=true has none; remove one of the "
                "two (STS-B is scored with report_pearson_and_spearman)"
            )
        return None
    if cfg.report_pearson_and_spearman:
        raise UserError(
            "criterion.report_pearson_and_spearman scores numbers; set criterion.regression_target=true, or remove it"
        )
    if not cfg.report_acc_and_f1:
        return None
    dictionary, classes = task.label_dictionary, task.cfg.num_classes
    if classes != 2 or POSITIVE not in dictionary:
        labels = ", ".join(dictionary.symbols[dictionary.nspecial :][:classes])
        raise UserError(
            f'criterion.report_acc_and_f1 scores the class "1" of "0" and "1", and the labels are {labels}; it is for '
            "MRPC and QQP, remove it for other tasks"
        )
    return dictionary.index(POSITIVE) - dictionary.nspecial


def _counts(meters):
    return meters[CONFUSION].sum.numpy()


def _pairs(meters):
    return meters[PREDICTED].tensor.numpy(), meters[WANTED].tensor.numpy()


def _f1(meters):
    return label_scores.f1(_counts(meters), positive=-1)


def _acc_and_f1(meters):
    return (label_scores.accuracy(_counts(meters)) + _f1(meters)) / 2


def _pearson(meters):
    return label_scores.pearson(*_pairs(meters))


def _spearman(meters):
    return label_scores.spearman(*_pairs(meters))


# field of the configuration -> {name in the log: what makes it of the meters of a whole set}
SCORES = {
    "report_mcc": {"mcc": lambda meters: label_scores.matthews(_counts(meters))},
    "report_acc_and_f1": {"acc_and_f1": _acc_and_f1, "f1": _f1},
    "report_pearson_and_spearman": {
        "pearson_and_spearman": lambda meters: (_pearson(meters) + _spearman(meters)) / 2,
        "pearson": _pearson,
        "spearman": _spearman,
    },
}
