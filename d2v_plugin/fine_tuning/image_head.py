"""From a body's features to classes: what the image classifiers of both versions share."""

import torch
import torch.nn.functional as F
from torch import Tensor

POOLINGS = ("MEAN_POOLING", "CLS_TOKEN", "LIN_SOFTMAX")
TOP = 5


def pooled(x: Tensor, how: str) -> Tensor:
    """One vector an image.

    Args:
        x: (B, L, C); with ``CLS_TOKEN`` the first position is CLS, otherwise all are patches.
        how: one of POOLINGS. ``LIN_SOFTMAX`` takes features for logits of a share in [0, 1], averages the shares of all
            patches weighted by themselves (linear softmax pooling, arXiv:1810.09050), and goes back to logits.
    Returns:
        (B, C) of the same dtype.
    """
    if how == "CLS_TOKEN":
        return x[:, 0]
    if how == "MEAN_POOLING":
        return x.mean(dim=1)
    log_share = F.logsigmoid(x.float())
    # the 1e-6 is upstream's, and no mistake of rounding: it shifts the result by as much
    log_mean = torch.logsumexp(2 * log_share, dim=1) - torch.logsumexp(log_share + 1e-6, dim=1)
    log_mean = log_mean.clamp(max=0)
    logit = log_mean - torch.log(-torch.expm1(log_mean))
    return torch.nan_to_num(logit, nan=0, posinf=0, neginf=0).to(x.dtype)


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, not summed.

    Args:
        logits: (B, classes).
        labels: (B,) int64, or (B, classes) of mixed labels, whose rows add up to 1 and are smoothed already.
    Returns:
        fp32, (B,) or, for mixed labels, (B, classes).
    """
    if labels.is_floating_point():
        return -labels * F.log_softmax(logits.float(), dim=-1)
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")


@torch.no_grad()
def counts(logits: Tensor, labels: Tensor) -> dict[str, Tensor | int]:
    """What accuracies are made of: images, and for how many the label is the first or among the first five guesses.

    Keys begin with "_", so that fairseq's criterion ``model`` adds them up and shows none of them.
    """
    first = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices == labels.unsqueeze(1)
    return {"_correct1": first[:, 0].sum(), "_correct5": first.any(dim=1).sum(), "_classified": len(labels)}


def result(logits: Tensor, labels: Tensor, training: bool, smoothing: float) -> dict:
    """What fairseq's criterion ``model`` takes: ``losses``, ``sample_size`` (images) and, in validation, counts."""
    loss = classification_loss(logits, labels, smoothing if training else 0.0)
    found = {"losses": {"regression": loss}, "sample_size": len(logits)}
    if not training:
        seen = counts(logits, labels)
        found |= {"correct": seen["_correct1"], "logs": seen}
    return found
