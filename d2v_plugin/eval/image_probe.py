"""What frozen features of images tell about their classes: nearest neighbours, a linear probe, and few labels.

The penalty of the linear probe is chosen on the validation part; everything is scored on the test part. The few labels
are drawn several times, and their nearest neighbours' accuracy is the mean over the draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from d2v_plugin.errors import UserError
from d2v_plugin.eval.few_labels import few_of_each
from d2v_plugin.eval.knn import K, knn_accuracy
from d2v_plugin.eval.linear_probe import fit_linear_probe

FEW, DRAWS = 10, 10  # labels of each class, and how often they are drawn


@dataclass(frozen=True)
class Part:
    """Features (N, D) of one split and the classes (N,) of its images."""

    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageScores:
    """Shares of test images whose class is told; ``layer`` None stands for raw pixels."""

    layer: int | None
    knn: float
    linear: float
    few: float
    error: float  # standard error of ``linear``, by the number of test images


def check_labels(parts: dict[str, Tensor | None], few: int = FEW) -> None:
    """Raises ``UserError`` where a split has no classes, or the training part too few images of one."""
    for split, labels in parts.items():
        if labels is None:
            raise UserError(f"the images of {split} have no classes; a probe needs {split}/CLASS/FILE")
    few_of_each(parts["train"], few)


def score(layer: int | None, train: Part, valid: Part, test: Part) -> ImageScores:
    """Probe one set of features."""
    knn = knn_accuracy(train.x, train.labels, test.x, test.labels, k=min(K, len(train.x)))
    linear = fit_linear_probe(train.x, train.labels, valid.x, valid.labels).accuracy(test.x, test.labels)
    draws = []
    for seed in range(DRAWS):
        rows = few_of_each(train.labels, FEW, seed)
        # with ten of each class, three neighbours are a third of what a class has
        draws.append(knn_accuracy(train.x[rows], train.labels[rows], test.x, test.labels, k=3))
    error = math.sqrt(linear * (1 - linear) / len(test.labels))
    return ImageScores(layer, knn, linear, sum(draws) / len(draws), error)


def features_of(model, indices: dict, image_input, layers) -> dict[str, dict[int, Part]]:
    """``{split: {layer: Part}}`` of a model."""
    from d2v_plugin.eval.image_features import image_features

    found = {split: image_features(model, index, image_input, layers) for split, index in indices.items()}
    check_labels({split: features.labels for split, features in found.items()})
    return {
        split: {layer: Part(x, features.labels) for layer, x in features.layers.items()}
        for split, features in found.items()
    }


def score_layers(parts: dict[str, dict[int, Part]]) -> list[ImageScores]:
    """Every layer that ``features_of`` found, in order."""
    layers = sorted(parts["train"])
    return [score(layer, *(parts[split][layer] for split in ("train", "valid", "test"))) for layer in layers]


def score_pixels(indices: dict, image_input) -> ImageScores:
    """The images themselves as features."""
    from d2v_plugin.eval.image_features import pixels

    found = {split: pixels(index, image_input) for split, index in indices.items()}
    check_labels({split: features.labels for split, features in found.items()})
    return score(None, *(Part(found[split].layers[0], found[split].labels) for split in ("train", "valid", "test")))


def format_table(trained: list[ImageScores], untrained: list[ImageScores] | None, raw: ImageScores) -> str:
    """Rows of percentages for the screen."""
    names = ("nearest neighbours", "linear probe", f"{FEW} labels a class")
    lines = [f"{'':<18}" + "".join(f"{name:>22}" for name in names)]
    for n, scores in enumerate(trained):
        lines.append(_line(f"layer {scores.layer}", scores))
        if untrained is not None:
            lines.append(_line("  untrained", untrained[n]))
    return "\n".join([*lines, _line("raw pixels", raw)])


def _line(name: str, scores: ImageScores) -> str:
    linear = f"{100 * scores.linear:.1f} +- {100 * scores.error:.1f} %"
    return f"{name:<18}{100 * scores.knn:>20.1f} %{linear:>22}{100 * scores.few:>20.1f} %"
