"""Manifests: what is read, and the one line a user gets when one is wrong."""

import re

import numpy as np
import pytest

from d2v_plugin.data.audio.manifest import Entry, load_manifest, parse_entry, write_manifest
from d2v_plugin.errors import UserError


def error_of(path, **limits):
    with pytest.raises(UserError) as caught:
        load_manifest(path, **limits)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_reads_names_sizes_and_rows(corpus):
    corpus.list("a b/é.wav", 400)
    corpus.list("c.flac", 12345678901)
    manifest = load_manifest(corpus.manifest())
    assert [manifest.name(i) for i in range(2)] == ["a b/é.wav", "c.flac"]
    assert manifest.sizes.tolist() == [400, 12345678901]
    assert manifest.rows.tolist() == [0, 1] and manifest.total == 2
    assert manifest.entry(0) == Entry(str(corpus.folder / "a b/é.wav"), 400)


def test_windows_line_ends_trailing_blanks_and_no_last_newline(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_bytes(f"{tmp_path}\r\na.wav\t10 \r\nb.wav\t20\r\n\r\n  ".encode())
    assert load_manifest(path).sizes.tolist() == [10, 20]
    path.write_bytes(f"{tmp_path}\na.wav\t7".encode())
    assert load_manifest(path).name(0) == "a.wav"


def test_relative_root_counts_from_the_manifest(tmp_path):
    (tmp_path / "wav").mkdir()
    path = tmp_path / "m.tsv"
    path.write_text("wav\na.wav\t10\n")
    assert load_manifest(path).entry(0).path == str(tmp_path / "wav" / "a.wav")


def test_length_limits_keep_rows_and_count_the_rest(corpus):
    for frames in (0, 50, 100, 200, 999):
        corpus.list(f"{frames}.wav", frames)
    manifest = load_manifest(corpus.manifest(), min_size=100, max_size=200)
    assert manifest.sizes.tolist() == [100, 200]
    assert manifest.rows.tolist() == [2, 3]
    assert manifest.name(1) == "200.wav"
    assert manifest.total == 5
    assert manifest.skipped == {"with 0 frames": 1, "shorter than 100 frames": 1, "longer than 200 frames": 1}


@pytest.mark.parametrize(
    ("spelled", "kind", "start", "length"),
    [
        ("x/clips.zip:120:4000", "zip", 120, 4000),
        ("talk.flac:16000:8000", "segment", 16000, 8000),
        ("plain.wav", "file", 0, 0),
        ("odd:name.wav", "file", 0, 0),
        ("clips.zip:1:x", "file", 0, 0),
    ],
)
def test_entries(spelled, kind, start, length):
    entry = parse_entry(spelled, 9)
    assert (entry.kind, entry.start, entry.length) == (kind, start, length)
    assert str(entry) == spelled


def test_written_manifest_reads_back(tmp_path):
    assert write_manifest(tmp_path / "m.tsv", tmp_path, [("a.wav", 3), ("ü.wav", 4)]) == 2
    manifest = load_manifest(tmp_path / "m.tsv")
    assert [manifest.name(0), manifest.name(1)] == ["a.wav", "ü.wav"]
    with pytest.raises(UserError, match="tab"):
        write_manifest(tmp_path / "m.tsv", tmp_path, [("a\tb.wav", 3)])


def test_missing(tmp_path):
    assert "does not exist" in error_of(tmp_path / "no.tsv")
    assert "folder" in error_of(tmp_path / "no" / "no.tsv")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty(tmp_path, content):
    path = tmp_path / "m.tsv"
    path.write_text(content)
    assert "empty" in error_of(path)


def test_root_only(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text(f"{tmp_path}\n\n")
    assert "no files" in error_of(path)


def test_header_points_nowhere(corpus):
    corpus.list("a.wav", 10)
    assert ":1:" in error_of(corpus.manifest(root="/no/such/folder"))


def test_header_left_out(tmp_path):
    path = tmp_path / "m.tsv"
    path.write_text("a.wav\t10\n")
    assert "insert the folder" in error_of(path)


@pytest.mark.parametrize("line", ["a.wav 10", "a.wav\t10\t3", "", "a.wav\t"])
def test_malformed_line_is_named(corpus, line):
    corpus.list("ok.wav", 10)
    corpus.lines += [line, "ok2.wav\t10"]
    assert re.search(r":3: ", error_of(corpus.manifest()))


@pytest.mark.parametrize("size", ["1.5", "-4", "1e3", "ten", "9" * 19])
def test_size_that_is_no_whole_number(corpus, size):
    corpus.list("ok.wav", 10)
    corpus.list("b.wav", size)
    message = error_of(corpus.manifest())
    assert ":3: " in message and repr(size)[:10] in message


def test_nothing_left_says_how_many_and_why(corpus):
    for frames in (0, 10, 20, 5000):
        corpus.list(f"{frames}.wav", frames)
    message = error_of(corpus.manifest(), min_size=100, max_size=1000)
    for part in ("4 entries", "1 with 0 frames", "2 shorter than 100 frames", "1 longer than 1000 frames"):
        assert part in message


def test_memory_per_entry_stays_small(corpus):
    corpus.lines = [f"speaker/chapter/utterance-{i:06d}.flac\t{16000 + i}" for i in range(20000)]
    manifest = load_manifest(corpus.manifest())
    held = manifest.sizes.nbytes + manifest.rows.nbytes + manifest._starts.nbytes + manifest._lengths.nbytes
    assert held <= 28 * len(manifest)
    assert manifest.name(19999).endswith("019999.flac")
    assert np.array_equal(manifest.sizes, 16000 + np.arange(20000))
