"""Batches of images: crops and masks that belong to samples, and bad images among good ones."""

import logging

import numpy as np
import pytest
import torch
from image_corpus import picture, png, write_folder, write_tar
from PIL import Image

from d2v_plugin.data.bad_files import TooManyBadFiles
from d2v_plugin.data.images.dataset import ImageDataset
from d2v_plugin.data.images.geometry import MAE_SCALE, CropRule, random_crop
from d2v_plugin.data.images.masks import ImageMasks, check_patches
from d2v_plugin.data.images.source import find_images
from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import SampleDraws

SIZE = 16
MASKS = ImageMasks(SIZE, patch_size=4, prob=0.6, adjust=0.1, length=2, inverse=True, clones=3)


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path, [f"train/{label}/{n}.png" for label in "ab" for n in range(6)], 40, 30)
    return tmp_path


def dataset_of(folder, rule=None, **options):
    return ImageDataset(find_images([str(folder)], "train"), rule or CropRule(SIZE), **options)


def batch_of(dataset, indices):
    return dataset.collater([dataset[i] for i in indices])


def loaded(dataset, batches, workers, epochs=(1,)):
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=dataset.collater,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    result = []
    for epoch in epochs:
        dataset.set_epoch(epoch)  # persistent workers were forked before the second epoch began
        result += list(loader)
    return result


def test_pictures_are_cropped_and_resized_as_pillow_does(folder):
    dataset = dataset_of(folder, seed=3)
    dataset.set_epoch(4)
    batch = batch_of(dataset, [2, 9])
    images = batch["net_input"]["source"]
    assert images.dtype == torch.uint8 and images.shape == (2, 3, SIZE, SIZE) and images.is_contiguous()
    assert batch["id"].tolist() == batch["ids"] == [2, 9] and batch["epoch"] == 4
    for row, n in enumerate((2, 9)):
        crop = random_crop(40, 30, SampleDraws(3, 4, [n]).uniform("image.crop", 40)[0], SIZE, MAE_SCALE)
        expected = picture(n, 40, 30).crop(crop.box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        assert torch.equal(images[row], torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1))


def test_a_sample_has_one_crop_in_any_batch_and_another_in_every_epoch(folder):
    dataset = dataset_of(folder)
    first = batch_of(dataset, [5, 1, 7])["net_input"]["source"]
    assert torch.equal(batch_of(dataset, [7])["net_input"]["source"][0], first[2])
    dataset.set_epoch(2)
    assert not torch.equal(batch_of(dataset, [7])["net_input"]["source"][0], first[2])
    dataset.set_epoch(1)
    assert torch.equal(batch_of(dataset, [7])["net_input"]["source"][0], first[2])
    assert not torch.equal(batch_of(dataset_of(folder, seed=2), [7])["net_input"]["source"][0], first[2])


@pytest.mark.parametrize("in_shards", [False, True])
def test_nothing_depends_on_workers(folder, tmp_path, in_shards):
    if in_shards:
        folder = tmp_path / "tars"
        for n in range(3):
            write_tar(folder / f"train/{n}.tar", {f"{k}.png": png(4 * n + k, 40, 30) for k in range(4)})
    results = {}
    for workers in (0, 2):
        dataset = dataset_of(folder, masks=MASKS, model_takes={"id", "masked_count"})
        results[workers] = loaded(dataset, [[0, 3, 11], [7, 2], [5]], workers, epochs=(1, 2))
    assert len(results[0]) == 6
    for a, b in zip(results[0], results[2], strict=True):
        assert a["ids"] == b["ids"] and a["epoch"] == b["epoch"]
        assert a["net_input"].keys() == b["net_input"].keys() == {"source", "id", "precomputed_mask", "masked_count"}
        for key in ("source", "id", "precomputed_mask"):
            assert torch.equal(a["net_input"][key], b["net_input"][key])
    first, second = results[2][0], results[2][3]
    assert first["epoch"] == 1 and second["epoch"] == 2
    assert not torch.equal(first["net_input"]["source"], second["net_input"]["source"])
    assert not torch.equal(first["net_input"]["precomputed_mask"], second["net_input"]["precomputed_mask"])


def test_masks_belong_to_samples_and_are_exact(folder):
    dataset = dataset_of(folder, masks=MASKS, key="imgs", model_takes={"masked_count"})
    net_input = batch_of(dataset, [4, 8])["net_input"]
    mask = net_input["precomputed_mask"]
    assert mask.shape == (2 * 3, 16) and mask.dtype == torch.bool
    assert type(net_input["masked_count"]) is int
    assert mask.sum(1).tolist() == [net_input["masked_count"]] * 6 and 0 < net_input["masked_count"] < 16
    assert torch.equal(batch_of(dataset, [8])["net_input"]["precomputed_mask"], mask[3:])
    assert len({tuple(row.tolist()) for row in mask}) > 1
    assert "masked_count" not in batch_of(dataset_of(folder, masks=MASKS), [4])["net_input"]
    assert batch_of(dataset_of(folder), [4])["net_input"].keys() == {"source"}


def test_masks_follow_their_settings():
    single = ImageMasks(32, patch_size=8, prob=0.5, length=1)
    assert single.grid == (16,) and single.masked_count == 8
    blocks = ImageMasks(32, patch_size=8, prob=0.5, length=3, inverse=True, dropout=0.1, clones=2)
    assert blocks.grid == (4, 4) and blocks.draw(1, 1, [1, 2, 3]).shape == (6, 16)
    tiles = ImageMasks(32, patch_size=8, prob=0.5, length=2, non_overlapping=True)
    drawn = tiles.draw(1, 1, list(range(20))).view(-1, 2, 2, 2, 2)
    # whole cells of a grid of 2 x 2 patches
    assert (drawn.amax((2, 4)) == drawn.amin((2, 4))).all()
    grown = ImageMasks(32, patch_size=8, prob=0.75, length=2, expand_adjacent=True)
    assert grown.draw(1, 1, [1]).sum() == 12


@pytest.mark.parametrize("sizes", [(224, 14, None), (224, 15, 210), (10, 16, 16), (16, 0, None)])
def test_patches_must_fill_the_picture(sizes):
    size, patch, instead = sizes
    if size % max(patch, 1) == 0 and patch:
        check_patches(size, patch)
        return
    with pytest.raises(UserError, match=f"input_size={size} is not a multiple of patch_size={patch}"):
        ImageMasks(size, patch_size=patch)
    if instead:
        with pytest.raises(UserError, match=f"task.input_size to {instead} or"):
            check_patches(size, patch)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"prob": 0.01}, "mask_prob 0.01 masks none of 16 positions"),
        ({"prob": 1.5}, "mask_prob must lie between 0 and 1, got 1.5"),
        ({"length": 5}, "mask_length must lie between 1 and the grid's side of 4 positions, got 5"),
        ({"length": 2, "adjust": -0.6}, "mask_prob_adjust -0.6"),
        ({"length": 2, "dropout": -1}, "mask_dropout must not be negative"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_batch(change, part):
    with pytest.raises(UserError) as caught:
        ImageMasks(32, patch_size=8, **{"prob": 0.5, **change})
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_validation_is_the_same_every_time(folder):
    dataset = dataset_of(folder, CropRule(SIZE, training=False), training=False, masks=MASKS)
    assert dataset.ordered_indices().tolist() == list(range(12))
    first = batch_of(dataset, [3, 4])
    dataset.set_epoch(9)
    second = batch_of(dataset, [3, 4])
    for key in ("source", "precomputed_mask"):
        assert torch.equal(first["net_input"][key], second["net_input"][key])


def test_order_is_a_function_of_seed_and_epoch(folder):
    dataset = dataset_of(folder, seed=1)
    orders = []
    for epoch in (1, 2, 1):
        dataset.set_epoch(epoch)
        np.random.seed(epoch + 10 * len(orders))  # NumPy's own generator has no part in it
        orders.append(dataset.ordered_indices().tolist())
    assert orders[0] == orders[2] != orders[1] and sorted(orders[1]) == list(range(12))
    other = dataset_of(folder, seed=2)
    assert other.ordered_indices().tolist() not in orders


def test_what_fairseq_asks_for(folder):
    dataset = dataset_of(folder)
    assert len(dataset) == 12 and dataset.sizes.tolist() == [1] * 12
    assert dataset.size(3) == dataset.num_tokens(3) == 1
    assert dataset.num_tokens_vec(np.arange(5)).tolist() == [1] * 5
    assert dataset.filter_indices_by_size(np.arange(3), 1)[0].tolist() == [0, 1, 2]
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_sentences=5)
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert dataset.collater([]) == {}


def spoil(folder):
    """Four of the twelve images cannot be used; returns their positions."""
    for name, data in (("0", b""), ("2", b"no image"), ("3", png(3, 40, 30)[:200])):
        (folder / f"train/a/{name}.png").write_bytes(data)
    Image.new("RGB", (70, 70)).save(folder / "train/b/1.png")
    return [0, 2, 3, 7]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pictures_are_left_out_counted_once_and_named(folder, caplog, workers):
    bad = spoil(folder)
    dataset = dataset_of(folder, max_bad_files=4, max_pixels=4000)
    batches = [[0, 1, 2], [3, 4], [7, 8], [9, 10]]
    found = loaded(dataset, batches, workers, epochs=(1, 2))
    assert [batch["ids"] for batch in found] == [[1], [4], [8], [9, 10]] * 2
    assert np.flatnonzero(dataset.bad_files.status.numpy()).tolist() == bad
    summary = dataset.bad_files.summary()
    assert "4 of 12 files" in summary
    for part in ("1 empty", "1 not an image", "1 truncated or corrupt", "1 too large"):
        assert part in summary
    if workers == 0:
        logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(logged) == 4 and all(line.startswith("skipped ") for line in logged)


def test_above_the_limit_one_line_stops(folder):
    spoil(folder)
    dataset = dataset_of(folder, max_bad_files=1)
    with pytest.raises(TooManyBadFiles) as caught:
        batch_of(dataset, [0, 1, 2])
    message = str(caught.value)
    assert "2 unusable files, max_bad_files allows 1" in message and "the log names each of them" in message
    assert "manifest" not in message and "\n" not in message


def test_a_batch_of_bad_pictures_borrows_a_neighbour(folder):
    spoil(folder)
    dataset = dataset_of(folder)
    assert batch_of(dataset, [2, 3])["ids"] == [1]
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 12 files could be read; the log names each"):
        batch_of(dataset_of(folder), [2, 3])


def test_a_broken_copy_is_fetched_again(folder, tmp_path):
    cache = tmp_path / "cache"
    dataset = dataset_of(folder, local_cache_path=str(cache))
    first = batch_of(dataset, [0, 1])["net_input"]["source"]
    for path in cache.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:100])
    again = dataset_of(folder, local_cache_path=str(cache))
    assert torch.equal(batch_of(again, [0, 1])["net_input"]["source"], first)
    assert again.bad_files.count() == 0
    assert all(Image.open(path).load() is not None for path in cache.rglob("*.png"))
    # where the original is broken, too, it counts
    spoil(folder)
    assert batch_of(dataset_of(folder, local_cache_path=str(tmp_path / "new")), [0, 1])["ids"] == [1]


def test_the_whole_picture_bilinear(folder):
    dataset = dataset_of(folder, CropRule(SIZE, plain=True))
    expected = picture(4, 40, 30).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(dataset[4]["source"], np.asarray(expected))
