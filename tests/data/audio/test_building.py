"""Finding recordings and dividing them."""

import numpy as np
import pytest
from audio_corpus import RATE

from d2v_plugin.data.audio.building import Recording, divide, find_files, segments, share, write_splits
from d2v_plugin.data.audio.io import read_audio
from d2v_plugin.data.audio.manifest import load_manifest, parse_entry
from d2v_plugin.errors import UserError


def test_share_is_a_rule_that_can_be_checked_by_hand():
    # `printf HELLO | md5sum` says eb61eead90e3b899c6bcbe27ac581660, in decimal a number that ends in 6624
    assert share("HELLO") == 0.6624
    assert share("HELLO", seed=1) != share("HELLO")
    spread = np.histogram([share(str(i)) for i in range(2000)], bins=4, range=(0, 1))[0]
    assert (abs(spread - 500) < 100).all()


def test_equal_texts_stay_together_whatever_else_there_is():
    recordings = [Recording(f"{i}.wav", 10, key=f"text {i % 40}") for i in range(200)]
    splits = divide(recordings, {"test": 0.1, "valid": 0.2})
    keys = [{recording.key for recording in chosen} for chosen in splits.values()]
    assert sum(map(len, splits.values())) == 200 and all(keys)
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    fewer = divide(recordings[:120], {"test": 0.1, "valid": 0.2})
    assert {recording.name for recording in fewer["test"]} <= {recording.name for recording in splits["test"]}


def test_small_sets_still_fill_every_split():
    recordings = [Recording(f"{i}.wav", 10, key=str(i)) for i in range(3)]
    assert [len(chosen) for chosen in divide(recordings, {"test": 0.001, "valid": 0.001}).values()] == [1, 1, 1]
    assert [len(chosen) for chosen in divide(recordings[:1], {"valid": 0.001}).values()] == [1, 0]


def test_segments_cover_the_recording(corpus):
    assert segments("a.wav", 100, 100) == [("a.wav", 100)]
    pieces = segments("a.wav", 10001, 2500)
    assert len(pieces) == 5 and sum(frames for _, frames in pieces) == 10001
    path = corpus.add("a.wav", 10001)
    read = [read_audio(parse_entry(str(corpus.folder / name), frames), RATE) for name, frames in pieces]
    assert np.array_equal(np.concatenate(read), read_audio(parse_entry(str(path), 10001), RATE))


def test_find_files(corpus):
    with pytest.raises(UserError, match="holds no file"):
        find_files(corpus.folder)
    corpus.add("b/A.WAV", format="WAV")
    corpus.add("a.flac")
    assert find_files(corpus.folder) == ["a.flac", "b/A.WAV"]
    assert find_files(corpus.folder, ["flac"]) == ["a.flac"]
    with pytest.raises(UserError, match="does not exist"):
        find_files(corpus.folder / "no")


def test_written_splits(tmp_path):
    splits = {"train": [Recording("a.wav", 5, "HI", "HI")], "valid": [Recording("b.wav", 6, "YO", "YO")], "test": []}
    write_splits(tmp_path / "new", tmp_path, splits)
    assert load_manifest(tmp_path / "new" / "valid.tsv").name(0) == "b.wav"
    names = ["dict.ltr.txt", *(f"{split}.{suffix}" for split in ("train", "valid") for suffix in ("ltr", "tsv", "wrd"))]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    write_splits(tmp_path / "bare", tmp_path, {"train": [Recording("a.wav", 5, "a.wav")]})
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["train.tsv"]
