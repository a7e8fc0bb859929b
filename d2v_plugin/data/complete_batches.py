"""Batches that leave nothing out, for every task that fine-tunes: labels are few, and scores are of whole sets."""

import numpy as np
from fairseq.data import BaseWrapperDataset


def complete_batches(dataset, indices, max_tokens=None, max_sentences=None, multiple=1) -> list[np.ndarray]:
    """``dataset.batch_by_size`` and what it leaves out.

    fairseq leaves out what is over a multiple in the last batch: of 20 recordings 4, with its default of 8, always the
    shortest ones. Here they are a batch of their own, so that error rates are those of the whole set and all labels
    are learned from.
    """
    batches = list(dataset.batch_by_size(indices, max_tokens, max_sentences, multiple))
    rest = indices[sum(map(len, batches)) :]
    return batches + list(dataset.batch_by_size(rest, max_tokens, max_sentences, 1)) if len(rest) else batches


class CompleteBatches(BaseWrapperDataset):
    """A data set as it is, but for its batches."""

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        return complete_batches(self.dataset, indices, max_tokens, max_sentences, required_batch_size_multiple)
