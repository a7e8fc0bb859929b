"""Batches: fairseq's for clean data, seeded crops, and bad files among good ones."""

import logging

import numpy as np
import pytest
import torch
from audio_corpus import RATE
from fairseq.data import FileAudioDataset, data_utils

from d2v_plugin.data.audio.dataset import AudioDataset, bucket_sizes
from d2v_plugin.data.audio.manifest import load_manifest
from d2v_plugin.data.bad_files import TooManyBadFiles
from d2v_plugin.errors import UserError

LENGTHS = (4000, 3000, 5200, 3000, 8000, 4100)


def dataset_of(path, **options):
    return AudioDataset(load_manifest(path), RATE, **options)


def batch_of(dataset, indices):
    return dataset.collater([dataset[i] for i in indices])


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], dict):
            same(a[key], b[key])
        else:
            assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key


@pytest.fixture
def clean(corpus):
    for i, length in enumerate(LENGTHS):
        corpus.add(f"{i}.wav", length)
    return corpus


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_clean_batches_equal_fairseq(clean, pad, normalize):
    path = clean.manifest()
    ours = dataset_of(path, pad=pad, normalize=normalize)
    theirs = FileAudioDataset(str(path), RATE, pad=pad, normalize=normalize)
    # without padding equal lengths only: a crop's place is ours to choose
    indices = [0, 1, 2, 4] if pad else [1, 3]
    same(batch_of(ours, indices), batch_of(theirs, indices))
    assert ours.sizes.tolist() == theirs.sizes.tolist()
    for each in (ours, theirs):
        with data_utils.numpy_seed(3):
            each.order = each.ordered_indices()
    assert np.array_equal(ours.order, theirs.order)


def test_cropped_shapes_and_masks_equal_fairseq(clean):
    path = clean.manifest()
    for pad in (True, False):
        ours = batch_of(dataset_of(path, pad=pad, max_sample_size=3500), range(6))
        theirs = batch_of(FileAudioDataset(str(path), RATE, pad=pad, max_sample_size=3500), range(6))
        assert ours["net_input"]["source"].shape == theirs["net_input"]["source"].shape
        if pad:
            assert torch.equal(ours["net_input"]["padding_mask"], theirs["net_input"]["padding_mask"])


def test_order_without_shuffle_and_sizes_after_the_crop(clean):
    dataset = dataset_of(clean.manifest(), shuffle=False, max_sample_size=3500, pad=True)
    assert dataset.ordered_indices().tolist() == list(range(6))
    assert dataset.num_tokens(4) == dataset.size(4) == 3500
    assert dataset.num_tokens_vec(np.array([1, 4])).tolist() == [3000, 3500]


def test_crop_is_a_piece_of_the_recording_and_moves_with_the_epoch(clean):
    dataset = dataset_of(clean.manifest(), max_sample_size=1000)
    whole = dataset[4]["source"]
    starts = []
    for epoch in (1, 2, 3, 1):
        dataset.set_epoch(epoch)
        crop = batch_of(dataset, [4])["net_input"]["source"][0]
        starts.append(int((whole.unfold(0, 1000, 1) == crop).all(1).nonzero()[0, 0]))
    assert starts[0] == starts[3] and len(set(starts[:3])) > 1
    other = dataset_of(clean.manifest(), max_sample_size=1000, seed=2)
    assert not torch.equal(batch_of(other, [4])["net_input"]["source"][0], crop)


def test_crops_do_not_depend_on_workers(clean):
    dataset = dataset_of(clean.manifest(), max_sample_size=1000)
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
            batches[workers] += [batch["net_input"]["source"] for batch in loader]
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[2], strict=True))
    assert not torch.equal(batches[2][0], batches[2][3])


def test_source_lengths_are_host_integers(clean):
    dataset = dataset_of(clean.manifest(), pad=True, max_sample_size=5000, model_takes=("source_lengths",))
    net_input = batch_of(dataset, [0, 1, 4])["net_input"]
    assert net_input["source_lengths"] == [4000, 3000, 5000]
    assert all(type(length) is int for length in net_input["source_lengths"])
    assert (~net_input["padding_mask"]).sum(1).tolist() == net_input["source_lengths"]
    dataset = dataset_of(clean.manifest(), model_takes=("source_lengths",))
    assert "source_lengths" not in batch_of(dataset, [0, 1])["net_input"]


def test_buckets(clean):
    assert bucket_sizes(np.array([5, 1, 9, 7]), 2).tolist() == [5, 5, 9, 9]
    dataset = dataset_of(clean.manifest(), pad=True, num_buckets=2)
    net_input = batch_of(dataset, [1, 3])["net_input"]
    assert net_input["source"].shape == net_input["padding_mask"].shape == (2, 4000)
    assert net_input["padding_mask"][:, 3000:].all() and not net_input["padding_mask"][:, :3000].any()
    with pytest.raises(UserError, match="enable_padding"):
        dataset_of(clean.manifest(), num_buckets=2)


def add_bad(corpus):
    """Five bad files among six good ones; returns their positions."""
    first = len(corpus.lines)
    corpus.list("missing.wav", 4000)
    corpus.add("empty.wav").write_bytes(b"")
    corpus.add("text.wav").write_text("no audio")
    corpus.add("zeros.wav", wave=np.zeros(4000, np.float32))
    corpus.add("lies.wav", listed=9000)
    return list(range(first, first + 5))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_skipped_counted_once_and_reported(clean, caplog, workers):
    bad = add_bad(clean)
    dataset = dataset_of(clean.manifest(), pad=True, max_bad_files=5)
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=[[i, i + 6] for i in range(5)] + [[5]], collate_fn=dataset.collater, num_workers=workers
    )
    for _ in range(2):
        assert [batch["id"].tolist() for batch in loader] == [[i] for i in range(6)]
    assert dataset.bad_files.count() == 5
    assert np.flatnonzero(dataset.bad_files.status.numpy()).tolist() == bad
    summary = dataset.bad_files.summary()
    for part in ("5 of 11", "1 missing", "1 empty", "1 not audio", "1 all zeros", "1 length differs"):
        assert part in summary
    if workers == 0:
        logged = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(logged) == 5 and all("skipped" in record.getMessage() for record in logged)


@pytest.mark.parametrize(("limit", "workers"), [(0, 0), (2, 0), (2, 1)])
def test_above_the_limit_one_line_stops(clean, workers, limit):
    add_bad(clean)
    dataset = dataset_of(clean.manifest(), max_bad_files=limit)
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=[[0, 6, 7, 8, 9]], collate_fn=dataset.collater, num_workers=workers
    )
    iterator = iter(loader)
    with pytest.raises(TooManyBadFiles) as caught:
        next(iterator)
    if workers:
        # left to the garbage collector, the worker waits five seconds
        iterator._shutdown_workers()
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(clean.folder))
    assert f"{limit + 1} unusable files, max_bad_files allows {limit}" in message
    assert "`d2v manifest check --decode` lists them" in message


def test_no_limit_and_no_bad_files(clean):
    bad = add_bad(clean)
    dataset = dataset_of(clean.manifest(), max_bad_files=-1)
    assert dataset.bad_files.summary() is None
    assert all(dataset[i]["source"] is None for i in bad)
    assert dataset.bad_files.count() == 5


def test_a_batch_of_bad_files_borrows_a_neighbour(clean):
    bad = add_bad(clean)
    dataset = dataset_of(clean.manifest(), pad=True)
    assert batch_of(dataset, bad)["id"].tolist() == [5]


def test_nothing_readable_at_all(corpus):
    corpus.list("a.wav", 400)
    corpus.list("b.wav", 400)
    dataset = dataset_of(corpus.manifest())
    with pytest.raises(UserError, match="none of the 2 files"):
        batch_of(dataset, [0, 1])
