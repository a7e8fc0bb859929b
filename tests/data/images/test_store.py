"""Reading bytes: files, shards, and copies on a local disk."""

import errno
import os
import pickle

import pytest
import torch
from image_corpus import png, write_folder, write_tar

from d2v_plugin.data.images.io import ImageError
from d2v_plugin.data.images.source import find_images
from d2v_plugin.data.images.store import OPEN_SHARDS, ImageStore
from d2v_plugin.errors import UserError


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "data", ["train/a/0.png", "train/a/1.png", "train/b/2.png"])
    return find_images([str(tmp_path / "data")], "train")


@pytest.fixture
def shards(tmp_path):
    for n in range(OPEN_SHARDS + 6):
        write_tar(tmp_path / f"data/train-{n:03d}.tar", {"x/same.png": png(n), "../same.png": png(n + 500)})
    return find_images([str(tmp_path / "data")], "train")


def copies(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_files(folder):
    store = ImageStore(folder)
    assert [store.read(n) for n in range(3)] == [png(0), png(1), png(2)]


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_shards_and_how_many_stay_open(shards):
    store = ImageStore(shards)
    before = open_files()
    for _ in range(2):
        for n in range(len(shards)):
            assert store.read(n) == png(n // 2 + 500 * (n % 2))
    assert open_files() == before + OPEN_SHARDS
    del store
    assert open_files() <= before


def test_every_process_opens_shards_for_itself(shards):
    store = ImageStore(shards)
    store.read(0)
    there = pickle.loads(pickle.dumps(store))
    assert not there._shards and there.read(3) == png(501)

    class Reading(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, n):
            size = len(store.read(n))
            assert store._process == os.getpid() and store.index.entry(n).path in store._shards
            return size

    loader = torch.utils.data.DataLoader(Reading(), batch_size=2, num_workers=2)
    assert torch.cat(list(loader)).tolist() == [len(png(n // 2 + 500 * (n % 2))) for n in range(8)]


def test_missing_and_unreadable(folder, tmp_path):
    store = ImageStore(folder)
    os.remove(tmp_path / "data/train/a/1.png")
    (tmp_path / "data/train/b/2.png").unlink()
    (tmp_path / "data/train/b/2.png").mkdir()
    for n, kind in ((1, "missing"), (2, "unreadable")):
        with pytest.raises(ImageError) as caught:
            store.read(n)
        assert caught.value.kind == kind


def test_copies_are_used_when_the_original_is_gone(folder, tmp_path):
    cache = tmp_path / "cache"
    store = ImageStore(folder, str(cache))
    assert [store.read(n) for n in range(3)] == [png(0), png(1), png(2)]
    # the layout of fairseq's cache: the whole path below the cache's
    assert copies(cache) == sorted(cache / folder.entry(n).path[1:] for n in range(3))
    os.remove(tmp_path / "data/train/a/1.png")
    assert ImageStore(folder, str(cache)).read(1) == png(1)


def test_copies_of_members_stay_apart_and_inside(shards, tmp_path):
    cache = tmp_path / "cache"
    store = ImageStore(shards, str(cache))
    assert [store.read(n) for n in range(4)] == [png(0), png(500), png(1), png(501)]
    assert len(copies(cache)) == 4
    for n in range(0, 4, 2):
        os.remove(shards.entry(n).path)
    assert [ImageStore(shards, str(cache)).read(n) for n in range(4)] == [png(0), png(500), png(1), png(501)]


def test_the_original_replaces_its_copy(folder, tmp_path):
    store = ImageStore(folder, str(tmp_path / "cache"))
    store.read(0)
    (copy,) = copies(tmp_path / "cache")
    copy.write_bytes(b"cut off")
    assert store.read(0) == b"cut off"
    assert store.read(0, original=True) == png(0) and store.read(0) == png(0)


def test_a_full_disk_costs_one_line(folder, tmp_path, monkeypatch, caplog):
    import builtins

    cache = tmp_path / "cache"
    store = ImageStore(folder, str(cache))
    store.read(0)
    plain, tried = builtins.open, []

    def full(file, mode="r", *args, **kwargs):
        if "w" in mode and str(file).startswith(str(cache)):
            tried.append(file)
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", full)
    for _ in range(2):
        assert [store.read(n) for n in range(3)] == [png(0), png(1), png(2)]
    assert len(tried) == 1 and len(copies(cache)) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"task.local_cache_path={cache} is full; no more images are copied there"
    ]


def test_a_copy_that_fails_half_way_leaves_nothing(folder, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    store = ImageStore(folder, str(tmp_path / "cache"))
    assert store.read(0) == png(0)
    assert not copies(tmp_path / "cache") and "fails (Permission denied)" in caplog.text


def test_slurm_folder(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    with pytest.raises(UserError, match="SLURM_TMPDIR, which is not set"):
        ImageStore(folder, "slurm_tmpdir")
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "job"))
    ImageStore(folder, "slurm_tmpdir").read(0)
    assert len(copies(tmp_path / "job")) == 1
