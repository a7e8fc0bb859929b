"""Audio with its classes, for classification."""

import torch
from fairseq.data import BaseWrapperDataset

from d2v_plugin.data.audio.dataset import AudioDataset
from d2v_plugin.data.audio.labels import Labels
from d2v_plugin.data.bad_files import readable
from d2v_plugin.data.complete_batches import complete_batches


class ClassDataset(BaseWrapperDataset):
    """Adds ``label`` to each batch and to its ``net_input``: (B, N) fp32, 1 for the classes that a recording has.

    Args:
        dataset: the audio; labels: as many lists of class numbers, in the same order.
        num_classes: N.
    """

    def __init__(self, dataset: AudioDataset, labels: Labels, num_classes: int):
        super().__init__(dataset)
        if len(labels) != len(dataset):
            raise ValueError(
                f"{len(labels)} lists of classes for {len(dataset)} recordings; load both with the same rows"
            )
        self.labels = labels
        self.num_classes = num_classes

    @property
    def single_label(self) -> bool:
        """Whether every recording has one class."""
        return bool((self.labels.lengths == 1).all())

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        sample["label"] = torch.zeros(self.num_classes)
        sample["label"][torch.from_numpy(self.labels[index]).long()] = 1.0
        return sample

    def num_tokens_vec(self, indices):
        return self.dataset.num_tokens_vec(indices)

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        return complete_batches(self.dataset, indices, max_tokens, max_sentences, required_batch_size_multiple)

    def collater(self, samples: list[dict]) -> dict:
        samples = readable(samples, self)
        collated = self.dataset.collater(samples)
        if collated:
            collated["label"] = torch.stack([sample["label"] for sample in samples])
            collated["net_input"]["label"] = collated["label"]
        return collated
