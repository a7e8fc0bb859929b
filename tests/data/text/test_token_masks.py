"""Masks of tokens: fairseq's numbers, and what each setting does to them."""

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, FairseqDataset, MaskTokensDataset

from d2v_plugin.data.text.masked_batches import MaskedBatches
from d2v_plugin.data.text.token_masks import TokenMasks, replacement_weights

# fairseq's own masking copies tensors in a way that NumPy will stop to take
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WORDS, PAD, UNKNOWN = 30, 1, 3


@pytest.fixture
def dictionary():
    dictionary = Dictionary()
    for n in range(WORDS):
        dictionary.add_symbol(f"w{n}", n=n + 1)
    dictionary.add_symbol("<mask>")
    return dictionary


class Blocks(FairseqDataset):
    def __init__(self, sizes, high):
        rng = np.random.default_rng(0)
        self.blocks = [torch.from_numpy(rng.integers(4, high, size)) for size in sizes]
        self.sizes = np.array(sizes)

    def __getitem__(self, index):
        return self.blocks[index]

    def __len__(self):
        return len(self.blocks)


SETTINGS = [
    {"mask_prob": 0.35, "mask_multiple_length": 4, "leave_unmasked_prob": 0.0, "random_token_prob": 0.0},
    {"mask_prob": 0.15},
    {"mask_prob": 0.9, "leave_unmasked_prob": 0.0},
    {"mask_prob": 0.6, "leave_unmasked_prob": 0.3},
    {"mask_prob": 0.4, "random_token_prob": 0.0},
    {"mask_prob": 0.5, "freq_weighted_replacement": True},
    {"mask_prob": 0.35, "mask_multiple_length": 4, "mask_stdev": 2.0},
    {"mask_prob": 0.01, "leave_unmasked_prob": 0.0, "random_token_prob": 0.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", [1, 7])
def test_masks_are_fairseqs(dictionary, settings, seed):
    blocks, mask = Blocks([3, 17, 100, 512, 1], len(dictionary) - 1), dictionary.index("<mask>")
    full = {"leave_unmasked_prob": 0.1, "random_token_prob": 0.1, "freq_weighted_replacement": False, **settings}
    sides = [
        MaskTokensDataset(blocks, dictionary, PAD, mask, return_masked_tokens=side, seed=seed, **full)
        for side in (False, True)
    ]
    masks = TokenMasks(
        mask,
        full["mask_prob"],
        full.get("mask_multiple_length", 1),
        full.get("mask_stdev", 0.0),
        keep=full["leave_unmasked_prob"],
        random=full["random_token_prob"],
        weights=replacement_weights(dictionary.count, dictionary.nspecial, full["freq_weighted_replacement"]),
        seed=seed,
    )
    ours = MaskedBatches(blocks, PAD, 1, masks, mask=mask, unknown=UNKNOWN)
    seen = []
    for epoch in (1, 2, 30):
        for dataset in (*sides, ours):
            dataset.set_epoch(epoch)
        for index in range(len(blocks)):
            item = ours[index]
            np.testing.assert_array_equal(item["source"], sides[0][index].numpy())
            np.testing.assert_array_equal(item["target"], sides[1][index].numpy())
            np.testing.assert_array_equal(item["text"], blocks[index].numpy())
        seen.append(ours[3]["source"].tolist())
    assert len({tuple(source) for source in seen}) == 3  # each epoch has its own


def test_nothing_but_seed_epoch_and_sample_moves_a_mask():
    masks = TokenMasks(9, 0.35, 4)
    text = np.arange(10, 210)
    first = masks(text, 1, 5)[0]
    np.random.seed(3), torch.manual_seed(3), masks(text, 2, 6)
    np.testing.assert_array_equal(masks(text, 1, np.int64(5))[0], first)
    others = [masks(text, 2, 5), masks(text, 1, 6), TokenMasks(9, 0.35, 4, seed=2)(text, 1, 5)]
    assert all((other[0] != first).any() for other in others)


def test_shares_are_those_asked_for():
    weights = replacement_weights([1] * 4 + [1, 0, 3], 4, by_frequency=True)
    assert weights.tolist() == [0, 0, 0, 0, 0.25, 0, 0.75]
    text = np.full(100_000, 8)
    masked, chosen = TokenMasks(9, 0.15, keep=0.1, random=0.1, weights=weights)(text, 1, 1)
    assert chosen.mean() == pytest.approx(0.15, abs=0.001)
    assert (masked == 9).mean() == pytest.approx(0.12, abs=0.003)
    assert (masked == 6).sum() / (masked == 4).sum() == pytest.approx(3, abs=0.3)
    assert (masked[chosen] == 8).mean() == pytest.approx(0.1, abs=0.01)
    assert (masked[~chosen] == 8).all()
