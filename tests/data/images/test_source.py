"""Folders, shards and what is wrong with them."""

import logging
import os
import tarfile

import numpy as np
import pytest
from image_corpus import png, write_folder, write_tar

from d2v_plugin.data.images.index import concatenate
from d2v_plugin.data.images.source import find_images, splits_in
from d2v_plugin.data.images.tar import read_shard
from d2v_plugin.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def names(index):
    return [index.name(n) for n in range(len(index))]


# -- folders -------------------------------------------------------------------------------------


def test_classes_and_order_are_those_of_torchvision(tmp_path):
    names_made = "b/10.jpg b/2.JPEG b/sub/1.png a/z.webp a/c/y.tif a/b.ppm B/x.pgm a/notes.txt a/x.gif"
    write_folder(tmp_path / "train", names_made.split())
    index = find_images([str(tmp_path)], "train")
    assert index.classes == ("B", "a", "b")
    assert names(index) == ["B/x.pgm", "a/b.ppm", "a/z.webp", "a/c/y.tif", "b/10.jpg", "b/2.JPEG", "b/sub/1.png"]
    assert index.labels.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert index.entry(1).path == str(tmp_path / "train" / "a" / "b.ppm") and os.path.isfile(index.entry(1).path)


def test_pictures_without_classes(tmp_path):
    write_folder(tmp_path / "train", ["2.png", "1.png", "x.txt"])
    (tmp_path / "train" / "notes").mkdir()
    index = find_images([str(tmp_path)], "train")
    assert names(index) == ["1.png", "2.png"] and index.labels is None and index.classes == ()


def test_loose_pictures_beside_classes_are_named(tmp_path, caplog):
    write_folder(tmp_path / "train", ["a/1.png", "loose.png", ".ipynb_checkpoints/1.png"])
    index = find_images([str(tmp_path)], "train")
    assert names(index) == ["a/1.png"]
    assert "1 images beside the class folders are not used, loose.png first" in caplog.text


def test_linked_classes_are_followed(tmp_path):
    write_folder(tmp_path / "elsewhere", ["1.png"])
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a").symlink_to(tmp_path / "elsewhere")
    assert names(find_images([str(tmp_path)], "train")) == ["a/1.png"]


def test_several_roots_and_a_selection(tmp_path):
    first = write_folder(tmp_path / "1", ["train/a/1.png", "train/b/2.png"])
    second = write_folder(tmp_path / "2", ["train/a/3.png", "train/b/4.png"])
    other = write_folder(tmp_path / "3", ["train/c/5.png"])
    both = find_images([str(first), str(second)], "train")
    assert both.labels.tolist() == [0, 1, 0, 1] and both.classes == ("a", "b")
    assert [both.entry(n).path for n in (1, 2)] == [str(first / "train/b/2.png"), str(second / "train/a/3.png")]
    picked = both.select(np.array([3, 0])).select(np.array([1, 0]))
    assert [picked.entry(n).path for n in (0, 1)] == [str(first / "train/a/1.png"), str(second / "train/b/4.png")]
    assert picked.labels.tolist() == [0, 1]
    # labels that mean different things are worth nothing
    three = find_images([str(first), str(other)], "train")
    assert len(three) == 3 and three.labels is None and three.classes == ()
    assert concatenate([both]) is both


def test_path_takes_everything_below_whatever_the_split(tmp_path):
    write_folder(tmp_path, ["a/2.png", "a/1.jpg", "b/c/3.jpeg", "0.png"])
    index = find_images([str(tmp_path)], "no such split", "path")
    assert names(index) == ["0.png", "a/1.jpg", "a/2.png", "b/c/3.jpeg"] and index.labels is None
    index = find_images([str(tmp_path / "b"), str(tmp_path / "a")], "train", "path")
    assert [os.path.relpath(index.entry(n).path, tmp_path) for n in range(3)] == ["b/c/3.jpeg", "a/1.jpg", "a/2.png"]


# -- shards --------------------------------------------------------------------------------------


def shards(folder, pattern="train/{}.tar", count=3, each=2):
    made = {}
    for n in range(count):
        members = {}
        for k in range(each):
            members[f"s{n}/{k}.png"] = png(10 * n + k)
            members[f"s{n}/{k}.cls"] = str(n).encode()
            members[f"s{n}/{k}.json"] = b"{}"
        write_tar(folder / pattern.format(n), members)
        made.update({name: data for name, data in members.items() if name.endswith(".png")})
    return made


def read(index, n):
    entry = index.entry(n)
    with open(entry.path, "rb") as file:
        file.seek(entry.offset)
        return file.read(entry.size)


@pytest.mark.parametrize("pattern", ["train/{}.tar", "train-{:03d}.tar"])
@pytest.mark.parametrize("kind", ["imagefolder", "tar"])
def test_members_are_found_where_they_lie(tmp_path, pattern, kind):
    made = shards(tmp_path, pattern)
    index = find_images([str(tmp_path)], "train", kind)
    assert names(index) == list(made) and index.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [read(index, n) for n in range(len(index))] == list(made.values())
    assert str(index.entry(0)) == f"{tmp_path / pattern.format(0)}:s0/0.png"
    picked = index.select(np.array([5, 1]))
    assert [read(picked, n) for n in range(2)] == [made["s2/1.png"], made["s0/1.png"]]


def test_several_roots_of_shards(tmp_path):
    made = {**shards(tmp_path / "1"), **shards(tmp_path / "2", count=1, each=3)}
    index = find_images([str(tmp_path / "1"), str(tmp_path / "2")], "train")
    assert len(index) == 9 and [read(index, n) for n in (6, 8)] == [made["s0/0.png"], made["s0/2.png"]]


def test_names_of_any_length_and_letters(tmp_path):
    long = "a" * 150 + "/" + "ü" * 60 + ".png"
    write_tar(tmp_path / "train/0.tar", {long: png(1), "./x/../y.PNG": png(2)})
    index = find_images([str(tmp_path)], "train")
    assert names(index) == [long, "./x/../y.PNG"] and index.labels is None
    assert read(index, 0) == png(1) and read(index, 1) == png(2)


def counted_reads(monkeypatch):
    calls = []

    def counting(path):
        calls.append(os.path.basename(path))
        return read_shard(path)

    monkeypatch.setattr("d2v_plugin.data.images.tar.read_shard", counting)
    return calls


def test_the_index_is_kept_until_a_shard_changes(tmp_path, monkeypatch):
    made = shards(tmp_path)
    calls = counted_reads(monkeypatch)
    first = find_images([str(tmp_path)], "train")
    assert sorted(calls) == ["0.tar", "1.tar", "2.tar"]
    assert (tmp_path / "train" / ".d2v_index.npz").is_file()
    again = find_images([str(tmp_path)], "train")
    assert len(calls) == 3
    assert names(again) == names(first) == list(made)
    assert np.array_equal(again.offsets, first.offsets) and np.array_equal(again.labels, first.labels)

    write_tar(tmp_path / "train/1.tar", {"new.png": png(77)})
    write_tar(tmp_path / "train/3.tar", {"more.png": png(78)})
    os.remove(tmp_path / "train/0.tar")
    changed = find_images([str(tmp_path)], "train")
    assert calls[3:] == ["1.tar", "3.tar"]
    assert names(changed) == ["new.png", "s2/0.png", "s2/1.png", "more.png"]
    assert read(changed, 0) == png(77) and read(changed, 2) == made["s2/1.png"]

    # same size, later
    status = os.stat(tmp_path / "train/3.tar")
    os.utime(tmp_path / "train/3.tar", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    find_images([str(tmp_path)], "train")
    assert calls[5:] == ["3.tar"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not an archive", b"x" * 100])
def test_a_broken_index_is_made_again(tmp_path, monkeypatch, content):
    made = shards(tmp_path)
    find_images([str(tmp_path)], "train")
    (tmp_path / "train" / ".d2v_index.npz").write_bytes(content)
    calls = counted_reads(monkeypatch)
    assert names(find_images([str(tmp_path)], "train")) == list(made)
    assert len(calls) == 3
    find_images([str(tmp_path)], "train")
    assert len(calls) == 3


def refuse_writing(monkeypatch, *folders):
    """What a read-only disk does, also to a test that runs as root."""
    import builtins

    plain = builtins.open

    def guarded(file, mode="r", *args, **kwargs):
        if "w" in mode and any(str(file).startswith(str(folder)) for folder in folders):
            raise OSError(30, "Read-only file system")
        return plain(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", guarded)


def test_where_shards_cannot_be_written_beside_the_users_cache_is_used(tmp_path, monkeypatch, caplog):
    made = shards(tmp_path)
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    refuse_writing(monkeypatch, tmp_path / "train")
    calls = counted_reads(monkeypatch)
    for _ in range(2):
        assert names(find_images([str(tmp_path)], "train")) == list(made)
    assert len(calls) == 3 and len(list((cache / "d2v").iterdir())) == 1
    refuse_writing(monkeypatch, tmp_path)
    os.remove(next((cache / "d2v").iterdir()))
    assert names(find_images([str(tmp_path)], "train")) == list(made)
    assert "the index cannot be kept (Read-only file system)" in caplog.text


def test_a_shard_that_was_cut_off_gives_what_it_has(tmp_path, caplog):
    made = shards(tmp_path)
    path = tmp_path / "train/1.tar"
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    # inside the second image: its header is there, its bytes are not
    data = path.read_bytes()
    path.write_bytes(data[: members[3].offset_data + 10])
    index = find_images([str(tmp_path)], "train")
    assert len(index) == 6 and read(index, 2) == made["s1/0.png"]
    assert "1.tar: cut off" in caplog.text


def test_a_shard_with_a_broken_header_gives_what_comes_before(tmp_path, caplog):
    shards(tmp_path)
    path = tmp_path / "train/1.tar"
    with tarfile.open(path) as tar:
        where = tar.getmembers()[3].offset
    data = bytearray(path.read_bytes())
    data[where : where + 512] = b"\x01" * 512
    path.write_bytes(data)
    index = find_images([str(tmp_path)], "train")
    assert names(index) == ["s0/0.png", "s0/1.png", "s1/0.png", "s2/0.png", "s2/1.png"]
    assert f"1.tar: broken at byte {where}" in caplog.text


def test_whole_shards_are_not_called_broken(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        shards(tmp_path)
        find_images([str(tmp_path)], "train")
    assert not caplog.records


# -- what is wrong -------------------------------------------------------------------------------


def test_splits_are_listed(tmp_path):
    write_folder(tmp_path, ["val/a/1.png"])
    shards(tmp_path, "imagenet-train-{:04d}.tar")
    assert splits_in(str(tmp_path)) == ["imagenet-train", "val"]


@pytest.mark.parametrize(
    ("made", "kind", "part"),
    [
        ([], "imagefolder", "this split does not exist; {root} has none"),
        (["val/a/1.png", "test/a/1.png"], "imagefolder", "this split does not exist; {root} has test, val"),
        (["train/x.txt"], "imagefolder", "no image (.jpg"),
        (["train/a/1.png"], "tar", "set task.dataset_type=imagefolder"),
        (["train/a/1.png", "train/b/x.txt"], "imagefolder", "train/b: holds no image"),
        (["train/a/1.png", "train/b/x.txt", "train/c/x.txt"], "imagefolder", "(and 1 other class folders)"),
        (["x.txt"], "path", "no image in it or below"),
        (["train/a/1.png"], "folder", "task.dataset_type must be one of imagefolder, path, tar"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, made, kind, part):
    write_folder(tmp_path, made)
    with pytest.raises(UserError) as caught:
        find_images([str(tmp_path)], "train", kind)
    assert part.format(root=tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_folder_and_mixed_kinds(tmp_path):
    with pytest.raises(UserError, match="nowhere: this folder does not exist"):
        find_images([str(tmp_path / "nowhere")], "train")
    write_folder(tmp_path / "1", ["train/a/1.png"])
    shards(tmp_path / "2")
    with pytest.raises(UserError, match="some are folders of images and some are shards"):
        find_images([str(tmp_path / "1"), str(tmp_path / "2")], "train")


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("train/0.tar.gz", {"mode": "w:gz"}, "0.tar.gz is compressed; unpack it"),
        ("train/0.tar", {"mode": "w:gz"}, "0.tar: cannot be read as an uncompressed tar"),
    ],
)
def test_compressed_shards(tmp_path, name, options, part):
    write_tar(tmp_path / name, {"a.png": png()}, **options)
    with pytest.raises(UserError) as caught:
        find_images([str(tmp_path)], "train")
    assert part in str(caught.value)


def test_shards_without_pictures_and_empty_files(tmp_path):
    write_tar(tmp_path / "train/0.tar", {"a.txt": b"x"})
    with pytest.raises(UserError, match="its 1 shards hold no image"):
        find_images([str(tmp_path)], "train")
    (tmp_path / "train/1.tar").write_bytes(b"")
    with pytest.raises(UserError, match="1.tar: cannot be read as an uncompressed tar .empty file."):
        find_images([str(tmp_path)], "train")
