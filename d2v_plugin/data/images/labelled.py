"""Images with their classes: which number each class has, and batches that bring it along."""

import os
from collections.abc import Sequence

import numpy as np
import torch

from d2v_plugin.data.complete_batches import complete_batches
from d2v_plugin.data.images.dataset import ImageDataset
from d2v_plugin.data.images.folder import class_names
from d2v_plugin.data.images.index import ImageIndex
from d2v_plugin.errors import UserError

NAMED = 3  # in messages


class LabelledImageDataset(ImageDataset):
    """``ImageDataset`` whose batches hold labels.

    Args:
        labels: (N,) int64, one for each image of ``index``.
        label_key: the model's name for them.
    """

    def __init__(self, index: ImageIndex, *args, labels: np.ndarray, label_key: str, **kwargs):
        super().__init__(index, *args, **kwargs)
        self.labels = labels
        self.label_key = label_key

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        return complete_batches(super(), indices, max_tokens, max_sentences, required_batch_size_multiple)

    def collater(self, samples: list[dict]) -> dict:
        """As ``ImageDataset``'s, with (B,) int64 under ``net_input[label_key]``."""
        batch = super().collater(samples)
        if batch:
            batch["net_input"][self.label_key] = torch.from_numpy(self.labels[batch["ids"]])
        return batch


def train_classes(data: str, subset: str) -> tuple[str, ...]:
    """Names of the class folders of the training split, by number; empty where there are none, as in shards."""
    return tuple(class_names(os.path.join(data, subset)))


def numbered(index: ImageIndex, classes: Sequence[str], source: str, num_classes: int | None = None) -> np.ndarray:
    """(N,) int64 labels of the images, as training numbers the classes.

    A split may lack classes; those it has keep their numbers. Upstream numbers the folders of each split by themselves,
    so that one missing in validation silently shifts all that follow.

    Args:
        classes: names in training, or empty where labels are numbers (shards).
        source: where these names come from, for messages.
        num_classes: outputs of the model, if there is one.
    Raises:
        UserError: no labels, a class that training lacks, or another number of classes than the model has.
    """
    if index.labels is None:
        raise UserError(
            f"{index.source}: no labels; images go into one folder a class, {index.source}/CLASS/IMAGE, or into shards "
            "where a member NAME.cls with the number of its class stands beside each image"
        )
    if bool(index.classes) != bool(classes):
        held = "class folders" if index.classes else "shards with numbers for classes"
        raise UserError(f"{index.source} has {held}, and {source} the other kind; give both splits as one kind")
    labels = index.labels.astype(np.int64)
    if not classes:
        return _checked_numbers(labels, index.source, num_classes)
    if num_classes is not None and num_classes != len(classes):
        raise UserError(
            f"{source} has {len(classes)} classes and the model {num_classes}; set ++model.num_classes={len(classes)}, "
            "or check task.data"
        )
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in index.classes if name not in number_of]
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise UserError(
            f"{index.source} has classes that {source} lacks: {', '.join(unknown[:NAMED])}{more}; remove these "
            "folders, or train with them"
        )
    return np.array([number_of[name] for name in index.classes], np.int64)[labels]


def _checked_numbers(labels: np.ndarray, source: str, num_classes: int | None) -> np.ndarray:
    if num_classes is not None and len(labels) and labels.max() >= num_classes:
        raise UserError(
            f"{source} has labels up to {labels.max()}, and the model's go from 0 to {num_classes - 1}; set "
            f"model.num_classes={labels.max() + 1}, or number the classes from 0"
        )
    return labels
