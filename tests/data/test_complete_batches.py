"""No recording is left out of labelled data, whatever the multiple that batches are to be of."""

import numpy as np
import pytest
import torch
from fairseq.data import FairseqDataset

from d2v_plugin.data.audio.class_dataset import ClassDataset
from d2v_plugin.data.audio.dataset import AudioDataset
from d2v_plugin.data.audio.labels import Labels
from d2v_plugin.data.audio.manifest import load_manifest
from d2v_plugin.data.audio.target_dataset import TargetDataset
from d2v_plugin.data.complete_batches import complete_batches


class Sized(FairseqDataset):
    def __init__(self, sizes):
        self.sizes = sizes

    def num_tokens_vec(self, indices):
        return self.sizes[indices]

    def num_tokens(self, index):
        return self.sizes[index]


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_every_entry_is_there_once_and_no_batch_is_too_large(multiple):
    rng = np.random.default_rng(0)
    for _ in range(100):
        sizes, limit = np.sort(rng.integers(1, 20, rng.integers(1, 60)))[::-1].copy(), int(rng.integers(20, 120))
        dataset, indices = Sized(sizes), np.arange(len(sizes))
        batches = complete_batches(dataset, indices, limit, None, multiple)
        assert np.concatenate(batches).tolist() == indices.tolist()
        assert all(sizes[batch].max() * len(batch) <= limit for batch in batches)


@pytest.mark.parametrize("kind", ["classes", "transcripts"])
def test_labelled_recordings(corpus, kind):
    for n in range(20):
        corpus.add(f"{n}.wav", 1000 + n)
    audio = AudioDataset(load_manifest(corpus.manifest()), 16000, pad=True)
    labels = Labels("x", np.arange(20), np.ones(20, np.int32), np.arange(21))
    if kind == "classes":
        dataset = ClassDataset(audio, labels, 2)
    else:
        dataset = TargetDataset(audio, labels, pad=0, eos=2)
    torch.manual_seed(0)
    order = dataset.ordered_indices()
    assert len(np.concatenate(audio.batch_by_size(order, 8 * 1020, None, 8))) == 16  # fairseq's
    batches = dataset.batch_by_size(order, 8 * 1020, None, 8)
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert np.concatenate(batches).tolist() == order.tolist()
