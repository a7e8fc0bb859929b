"""Masks of audio batches: drawn over the frames in the batch, one number in every row, nothing masked in padding."""

import pytest
import torch
from audio_corpus import RATE
from fairseq.data import FileAudioDataset
from fairseq.data.data_utils import compute_block_mask_1d

from d2v_plugin.data.audio.dataset import AudioDataset
from d2v_plugin.data.audio.manifest import load_manifest
from d2v_plugin.data.audio.masks import AudioMasks
from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import GeneratorDraws, same_count
from d2v_plugin.modules.conv_spec import ConvSpec

SPEC = ConvSpec.parse("[(4, 10, 5)] + [(4, 3, 2)] * 4 + [(4, 2, 2)] * 2")
BASE = {"prob": 0.5, "adjust": 0.05, "length": 5, "clones": 3}
LENGTHS = (16000, 12000, 20000, 12000, 32000, 16400)


@pytest.fixture
def path(corpus):
    for i, length in enumerate(LENGTHS):
        corpus.add(f"{i}.wav", length)
    return corpus.manifest()


def dataset_of(path, rule=BASE, **options):
    return AudioDataset(load_manifest(path), RATE, masks=AudioMasks(SPEC, **rule), **options)


def inputs(dataset, indices):
    return dataset.collater([dataset[i] for i in indices])["net_input"]


def test_a_cropped_batch_has_fairseqs_count_in_every_row(path):
    mask = inputs(dataset_of(path, model_takes=("masked_count",)), [0, 1, 2])
    T = SPEC.frames(12000)
    expected = compute_block_mask_1d((1, T), 0.5, 5, 0.05).sum().item()
    assert mask["source"].shape == (3, 12000)
    assert mask["precomputed_mask"].shape == (9, T) and mask["precomputed_mask"].dtype == torch.bool
    assert mask["precomputed_mask"].sum(1).tolist() == [expected] * 9
    assert mask["masked_count"] == expected and type(mask["masked_count"]) is int


def test_nothing_is_added_that_the_model_does_not_take(path):
    assert inputs(dataset_of(path), [0, 1]).keys() == {"source", "precomputed_mask"}
    takes = ("id", "masked_count", "source_lengths")
    taken = inputs(dataset_of(path, model_takes=takes, pad=True), [4, 1])
    assert taken.keys() == {"source", "padding_mask", "precomputed_mask", *takes}
    assert taken["id"].tolist() == [4, 1]


def test_masks_are_functions_of_seed_epoch_and_entry(path):
    dataset = dataset_of(path)

    def mask(indices):
        return inputs(dataset, indices)["precomputed_mask"]

    batch = mask([1, 3])
    assert torch.equal(mask([3, 1]), batch[[3, 4, 5, 0, 1, 2]])
    assert torch.equal(mask([3, 0])[:3], batch[3:])
    assert len({tuple(row.tolist()) for row in batch}) == 6
    dataset.set_epoch(2)
    assert not torch.equal(mask([1, 3]), batch)
    assert not torch.equal(inputs(dataset_of(path, seed=2), [1, 3])["precomputed_mask"], batch)


def test_masks_do_not_depend_on_workers(path):
    dataset = dataset_of(path, pad=True)
    batches = {}
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_sampler=[[0, 1], [2, 3], [4, 5]],
            collate_fn=dataset.collater,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        batches[workers] = []
        # persistent workers were forked before the second epoch began
        for epoch in (1, 2):
            dataset.set_epoch(epoch)
            batches[workers] += [batch["net_input"]["precomputed_mask"] for batch in loader]
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[2], strict=True))
    assert not torch.equal(batches[2][0], batches[2][3])


RULES = {
    "base": {},
    "large": {"prob": 0.55, "adjust": 0.1},
    "inverse": {"prob": 0.6, "inverse": True},
    "expanding": {"adjust": 0.0, "expand_adjacent": True},
    "tiles": {"non_overlapping": True},
    "dropout": {"dropout": 0.2},
}


@pytest.mark.parametrize("buckets", [0, 2])
@pytest.mark.parametrize("name", RULES)
def test_padding_is_never_masked_and_every_row_keeps_something(path, name, buckets):
    rule = {**BASE, **RULES[name]}
    dataset = dataset_of(path, rule, pad=True, num_buckets=buckets, model_takes=("masked_count", "source_lengths"))
    batch = inputs(dataset, [0, 1, 2])
    mask, frames = batch["precomputed_mask"], [SPEC.frames(n) for n in batch["source_lengths"]]
    assert mask.shape == (9, SPEC.frames(batch["source"].shape[1]))
    shortest = SPEC.frames(12000)
    count = shortest - int(shortest * (1 - 0.6)) if name == "inverse" else int(shortest * rule["prob"])
    assert batch["masked_count"] == count and mask.sum(1).tolist() == [count] * 9
    for row, length in zip(mask.view(3, 3, -1), frames, strict=True):
        assert not row[:, length:].any()


@pytest.mark.parametrize("prob", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("samples", [720, 1100, 1700])
def test_recordings_of_a_few_frames_do_not_end_a_run(corpus, samples, prob):
    corpus.add("short.wav", samples)
    corpus.add("long.wav", 8000)
    path, frames = corpus.manifest(), SPEC.frames(samples)
    for pad, indices in ((True, [0, 1]), (False, [0, 1]), (True, [0])):
        dataset = dataset_of(path, {**BASE, "prob": prob}, pad=pad, model_takes=("masked_count",))
        batch = inputs(dataset, indices)
        count = batch["masked_count"]
        assert count == min(max(int(frames * prob), 1), frames - 1)
        assert batch["precomputed_mask"].sum(1).tolist() == [count] * (3 * len(indices))
        assert not batch["precomputed_mask"][:3, frames:].any()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"prob": 0.0}, "mask_prob 0.0 masks none"),
        ({"prob": 1.0}, "mask_prob 1.0 leaves nothing"),
        ({"prob": 1.5}, "mask_prob must lie between 0 and 1, got 1.5"),
        ({"length": 0}, "mask_length must lie between 1"),
        ({"adjust": -0.7}, "mask_prob_adjust -0.7"),
        ({"adjust": 0.7, "non_overlapping": True}, "mask_prob_adjust 0.7"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_batch(change, part):
    with pytest.raises(UserError, match=part):
        AudioMasks(SPEC, **{**BASE, **change})


def test_fairseqs_own_masks_have_different_counts_until_they_are_made_equal(path):
    rule = {"mask_prob": 0.5, "mask_prob_adjust": 0.05, "mask_length": 5, "clone_batch": 3}
    spec = "[(4, 10, 5)] + [(4, 3, 2)] * 4 + [(4, 2, 2)] * 2"
    theirs = FileAudioDataset(str(path), RATE, compute_mask=True, feature_encoder_spec=spec, **rule)
    mask = theirs.collater([theirs[i] for i in (0, 1, 4)])["net_input"]["precomputed_mask"].bool()
    assert mask.shape == (9, SPEC.frames(12000)) and len(set(mask.sum(1).tolist())) > 1
    equal, count = same_count(mask, GeneratorDraws(None, 9))
    assert equal.sum(1).tolist() == [count] * 9
    assert count == round(float(mask.sum(1).double().mean()))
