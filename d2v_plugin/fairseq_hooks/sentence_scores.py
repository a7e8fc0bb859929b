"""fairseq's ``sentence_prediction`` criterion scores a validation set on several processes, and batches of one.

It gathers predictions as lists and says that logs can be summed, so that several processes add the lists up number by
number and score the sums; and it scores each batch by itself as well, where today's SciPy refuses to correlate a batch
of one.
"""

import numpy as np
from fairseq.criterions import sentence_prediction

from d2v_plugin.eval.label_scores import pearson, spearman


def pearson_and_spearman(preds: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """fairseq's signature and result, 0 where there is no correlation to speak of."""
    found = pearson(preds, labels), spearman(preds, labels)
    return {"pearson": found[0], "spearmanr": found[1], "corr": sum(found) / 2}


def install() -> None:
    """Replace the two functions."""

    def logging_outputs_can_be_summed(self) -> bool:
        return self.training or not self.keep_pred_and_targ

    sentence_prediction.pearson_and_spearman = pearson_and_spearman
    sentence_prediction.SentencePredictionCriterion.logging_outputs_can_be_summed = logging_outputs_can_be_summed
