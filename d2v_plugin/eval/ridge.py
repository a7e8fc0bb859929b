"""Ridge regression in closed form, with the penalty chosen by cross-validation over utterances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d2v_plugin.errors import UserError

# relative to the mean eigenvalue of the feature covariance, so the grid means the same at any scale and width
# (1e-6: plain least squares; 1e4: the features are as good as ignored)
PENALTIES = tuple(10.0**k for k in range(-6, 5))


@dataclass(frozen=True)
class Ridge:
    """y ~ (x - x_mean) / x_scale @ weights + y_mean."""

    x_mean: np.ndarray
    x_scale: np.ndarray
    y_mean: np.ndarray
    weights: np.ndarray
    penalty: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, outputs) float64."""
        return (x - self.x_mean) / self.x_scale @ self.weights + self.y_mean


def _weights(gram: np.ndarray, moment: np.ndarray, penalties: Sequence[float]) -> list[np.ndarray]:
    """(gram + penalty * mean eigenvalue * 1)^-1 moment for every penalty, from one eigendecomposition."""
    values, vectors = np.linalg.eigh(gram)
    rotated = vectors.T @ moment
    unit = max(float(values.sum()) / len(values), 1e-30)
    return [vectors @ (rotated / (np.maximum(values, 0.0) + p * unit)[:, None]) for p in penalties]


def fit_ridge(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, penalties: Sequence[float] = PENALTIES, folds: int = 5
) -> Ridge:
    """Least squares with an L2 penalty, features standardised, intercept not penalised.

    The penalty is the one with the least squared error in cross-validation over groups (an utterance is one); the
    fit then uses everything. Normal equations add up over the folds, so this costs little more than one fit.

    Args:
        x: (N, D) features.
        y: (N, outputs) targets.
        groups: (N,) integers; rows of one group stay on one side of every split.
    Raises:
        UserError: fewer groups than folds.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < folds:
        raise UserError(
            f"need at least {folds} utterances to choose the penalty, got {len(names)}; use a longer manifest"
        )
    x_mean, y_mean, x_scale = x.mean(0), y.mean(0), x.std(0)
    # a constant feature says nothing; dividing by its rounding noise would make it say something
    x_scale = np.where(x_scale > 1e-6 * max(float(x_scale.max()), 1e-30), x_scale, np.inf)
    z, centred = (x - x_mean) / x_scale, y - y_mean
    parts = [(z[member % folds == fold], centred[member % folds == fold]) for fold in range(folds)]
    grams, moments = [a.T @ a for a, _ in parts], [a.T @ b for a, b in parts]
    gram, moment = sum(grams), sum(moments)
    errors = np.zeros(len(penalties))
    for (a, b), fold_gram, fold_moment in zip(parts, grams, moments, strict=True):
        found = _weights(gram - fold_gram, moment - fold_moment, penalties)
        errors += [np.square(a @ weights - b).sum() for weights in found]
    penalty = penalties[int(np.argmin(errors))]
    return Ridge(x_mean, x_scale, y_mean, _weights(gram, moment, [penalty])[0], penalty)


def r2_score(y: np.ndarray, predicted: np.ndarray) -> float:
    """1 - residual / total sum of squares for each output, averaged over the outputs that vary.

    Args:
        y, predicted: (N, outputs).
    """
    residual = np.square(y - predicted).sum(0)
    total = np.square(y - y.mean(0)).sum(0)
    varies = total > 1e-12
    if not varies.any():
        raise UserError("the targets do not vary, so there is nothing to explain; use more varied recordings")
    return float((1.0 - residual[varies] / total[varies]).mean())
