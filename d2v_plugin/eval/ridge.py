"""Ridge regression in closed form, with the penalty chosen on held-out groups of the training data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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


def _solutions(x: np.ndarray, y: np.ndarray, penalties: tuple[float, ...]) -> list[Ridge]:
    """One fit for every penalty, from one eigendecomposition."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x_scale = x.std(0)
    # a constant feature says nothing; dividing by its rounding noise would make it say something
    x_scale = np.where(x_scale > 1e-6 * max(float(x_scale.max()), 1e-30), x_scale, np.inf)
    z = (x - x_mean) / x_scale
    values, vectors = np.linalg.eigh(z.T @ z)
    rotated = vectors.T @ (z.T @ (y - y_mean))
    unit = max(float(values.sum()) / len(values), 1e-30)
    return [
        Ridge(x_mean, x_scale, y_mean, vectors @ (rotated / (np.maximum(values, 0.0) + p * unit)[:, None]), p)
        for p in penalties
    ]


def fit_ridge(x: np.ndarray, y: np.ndarray, groups: np.ndarray, penalties: tuple[float, ...] = PENALTIES) -> Ridge:
    """Least squares with an L2 penalty, features standardised, intercept not penalised.

    Every fifth group (an utterance) is set aside to choose the penalty; the fit then uses everything.

    Args:
        x: (N, D) features.
        y: (N, outputs) targets.
        groups: (N,) integers; rows of one group stay on one side of the split.
    Raises:
        ValueError: fewer than five groups.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    names = np.unique(groups)
    if len(names) < 5:
        raise ValueError(f"need at least 5 utterances to choose the penalty, got {len(names)}; use a longer manifest")
    aside = np.isin(groups, names[4::5])
    errors = [np.square(fit.predict(x[aside]) - y[aside]).sum() for fit in _solutions(x[~aside], y[~aside], penalties)]
    return _solutions(x, y, (penalties[int(np.argmin(errors))],))[0]


def r2_score(y: np.ndarray, predicted: np.ndarray, baseline: np.ndarray | None = None) -> float:
    """1 - residual / baseline sum of squares for each output, averaged over the outputs that vary.

    Args:
        y, predicted: (N, outputs).
        baseline: what is compared with; the outputs' own means when not given.
    """
    residual = np.square(y - predicted).sum(0)
    total = np.square(y - (y.mean(0) if baseline is None else baseline)).sum(0)
    varies = total > 1e-12
    if not varies.any():
        raise ValueError("the targets do not vary, so there is nothing to explain; use more varied recordings")
    return float((1.0 - residual[varies] / total[varies]).mean())
