"""Linear probe: multinomial logistic regression on frozen features, the penalty chosen on a validation part.

Features are standardised, weights start at zero and L-BFGS runs in fp64 until the gradient vanishes, so the result is
that of the convex problem and the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.errors import UserError
from d2v_plugin.eval.knn import accuracy

# weight of half the squared norm of the weights beside the mean loss of an image
PENALTIES = tuple(10.0**k for k in range(-5, 2))
STEPS = 500
TOLERANCE = 1e-6  # largest entry of the gradient


@dataclass(frozen=True)
class LinearProbe:
    """Scores are ``(x - mean) / scale @ weights + bias``; all fp64."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    weights: Tensor  # (D, classes)
    bias: Tensor  # (classes,)
    penalty: float
    valid_accuracy: float

    def predict(self, x: Tensor) -> Tensor:
        """(N, D) -> (N,) int64."""
        return ((x.to(self.mean) - self.mean) / self.scale @ self.weights + self.bias).argmax(1)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Share of the images whose class the probe tells; labels (N,) int64."""
        return accuracy(self.predict(x), labels.to(self.mean.device))


def fit_linear_probe(
    x: Tensor, labels: Tensor, valid_x: Tensor, valid_labels: Tensor, penalties: Sequence[float] = PENALTIES
) -> LinearProbe:
    """Fit with every penalty; keep what does best on the validation part, of equals the one of largest penalty.

    Args:
        x: (N, D) features, on the device that is to do the work.
        labels: (N,) int64, from 0.
        valid_x, valid_labels: images that are not among them.
    Raises:
        UserError: only one class, or a validation part that is empty or holds another class.
    """
    classes = int(labels.max()) + 1 if len(labels) else 0
    if len(labels.unique()) < 2:
        raise UserError(f"a probe needs images of two classes or more, got {len(labels.unique())}")
    if len(valid_labels) == 0 or int(valid_labels.max()) >= classes:
        raise UserError("the validation part must hold images, and only of classes that the training part has")
    x = x.double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    # a constant feature says nothing; dividing by its rounding noise would make it say something
    scale = torch.where(scale > 1e-6 * scale.max().clamp(min=1e-30), scale, torch.inf)
    z = (x - mean) / scale
    best = None
    for penalty in sorted(penalties, reverse=True):
        parameters = _minimise(z, labels.to(z.device), classes, penalty)
        probe = LinearProbe(mean, scale, parameters[:-1], parameters[-1], penalty, 0.0)
        share = probe.accuracy(valid_x, valid_labels)
        if best is None or share > best.valid_accuracy:
            best = LinearProbe(mean, scale, parameters[:-1], parameters[-1], penalty, share)
    return best


def _minimise(z: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """(D + 1, classes): weights and, in the last row, the bias, which is not penalised."""
    parameters = z.new_zeros(z.shape[1] + 1, classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [parameters],
        max_iter=STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        weights, bias = parameters[:-1], parameters[-1]
        value = F.cross_entropy(z @ weights + bias, labels) + penalty / 2 * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return parameters.detach()
