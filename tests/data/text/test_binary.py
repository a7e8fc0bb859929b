"""fairseq's memory-mapped token files: the same bytes as fairseq's own writer, and readable by its reader."""

import numpy as np
import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDataset, infer_dataset_impl, make_builder

from d2v_plugin.data.text import binary as text_binary
from d2v_plugin.data.text.binary import TokenWriter, open_tokens
from d2v_plugin.errors import UserError


def sequences(symbols, count=50, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, symbols, size) for size in rng.integers(1, 30, count)]


def write(prefix, rows, symbols, chunk=7):
    writer = TokenWriter(prefix, symbols)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        writer.add(np.concatenate(part), np.array([len(row) for row in part], np.int32))
    writer.close()


@pytest.mark.parametrize("symbols", [100, 65499, 65500, 100_000])
@pytest.mark.parametrize("count", [1, 50])
def test_bytes_are_fairseqs(tmp_path, monkeypatch, symbols, count):
    monkeypatch.setattr(text_binary, "CHUNK", 64)  # several chunks of lengths
    rows = sequences(symbols, count)
    builder = make_builder(str(tmp_path / "theirs.bin"), impl="mmap", vocab_size=symbols)
    for row in rows:
        builder.add_item(torch.from_numpy(row))
    builder.finalize(str(tmp_path / "theirs.idx"))
    write(tmp_path / "ours", rows, symbols)
    for kind in (".bin", ".idx"):
        assert (tmp_path / f"ours{kind}").read_bytes() == (tmp_path / f"theirs{kind}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.bin", "ours.idx", "theirs.bin", "theirs.idx"]


def test_both_readers_give_the_rows_back(tmp_path):
    rows = sequences(5000)
    write(tmp_path / "a", rows, 5000)
    assert infer_dataset_impl(str(tmp_path / "a")) == "mmap"
    theirs, ours = MMapIndexedDataset(str(tmp_path / "a")), open_tokens(tmp_path / "a")
    assert len(theirs) == len(ours) == len(rows)
    for index, (row, found) in enumerate(zip(rows, ours.sequences(), strict=True)):
        assert np.array_equal(found, row) and np.array_equal(theirs[index].numpy(), row)
    assert np.array_equal(next(ours.sequences(20)), rows[20])


def test_an_empty_split_can_be_opened(tmp_path):
    TokenWriter(tmp_path / "a", 10).close()
    assert len(open_tokens(tmp_path / "a")) == 0


def test_discarded_writers_leave_nothing(tmp_path):
    writer = TokenWriter(tmp_path / "a", 10)
    writer.add(np.arange(3), np.array([3]))
    writer.discard()
    assert list(tmp_path.iterdir()) == []
    done = TokenWriter(tmp_path / "b", 10)
    done.close()
    done.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.bin", "b.idx"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.with_suffix(".bin").unlink(), "needs .*a.bin and .*a.idx"),
        (lambda p: p.write_bytes(b"TNTIDX\x00\x00" + bytes(50)), "not an index of fairseq's mmap kind"),
        (lambda p: p.write_bytes(p.read_bytes()[:20]), "not an index"),
        (lambda p: p.write_bytes(p.read_bytes()[:-4]), "does not fit the 50 sequences"),
        (lambda p: p.write_bytes(b"MMIDIDX\x00\x00" + b"\x02" + p.read_bytes()[10:]), "version 2"),
        (lambda p: p.with_suffix(".bin").write_bytes(b"12"), "has 2 bytes where a.idx announces"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, damage, message):
    write(tmp_path / "a", sequences(100), 100)
    damage(tmp_path / "a.idx")
    with pytest.raises(UserError, match=message) as caught:
        open_tokens(tmp_path / "a")
    assert "\n" not in str(caught.value)
