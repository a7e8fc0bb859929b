"""``d2v manifest build`` and ``d2v manifest check``."""

import json

import numpy as np
import pytest
from audio_corpus import RATE

from d2v_plugin.cli.main import main
from d2v_plugin.data.audio.manifest import load_manifest
from d2v_plugin.tasks._audio import STANDARD_EXTRACTOR


def build(corpus, *options):
    return main(["manifest", "build", str(corpus.folder / "in"), "--dest", str(corpus.folder / "out"), *options])


def check(path, *options, capsys):
    code = main(["manifest", "check", str(path), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def recordings(corpus):
    for i in range(12):
        corpus.add(f"in/{i % 3}/{i}.wav", 4000 + i)
    corpus.add("in/rate.flac", 24000, rate=48000)
    corpus.add("in/broken.wav").write_text("no audio")
    return corpus


def test_build_then_check(recordings, capsys):
    assert build(recordings, "--valid-percent", "0.3") == 0
    printed = capsys.readouterr().out
    assert "broken.wav: not audio" in printed and "left out 1 files: 1 not audio" in printed
    out = recordings.folder / "out"
    manifests = [load_manifest(out / f"{split}.tsv") for split in ("train", "valid")]
    names = [manifest.name(i) for manifest in manifests for i in range(len(manifest))]
    assert len(names) == len(set(names)) == 13
    sizes = {manifest.name(i): manifest.sizes[i] for manifest in manifests for i in range(len(manifest))}
    # sizes are given at the wanted rate
    assert sizes["rate.flac"] == 8000 and sizes["0/0.wav"] == 4000
    code, report = check(out / "train.tsv", "--decode", capsys=capsys)
    assert code == 0 and report["usable"] == report["entries"] == len(manifests[0])
    assert report["hours"] == pytest.approx(manifests[0].sizes.sum() / RATE / 3600, abs=1e-4)


def test_build_is_repeatable_and_the_seed_moves_it(recordings, capsys):
    chosen = []
    for seed in ("0", "0", "5"):
        build(recordings, "--valid-percent", "0.4", "--seed", seed)
        chosen.append((recordings.folder / "out" / "valid.tsv").read_text())
    assert chosen[0] == chosen[1] != chosen[2]


def test_build_with_labels(recordings, capsys):
    lines = [f"{i % 3}/{i}.wav\tText {'abcd'[i % 4]}, {'pq'[i % 2]}!" for i in range(10)] + ["gone.wav\tx"]
    (recordings.folder / "t.tsv").write_text("\n".join(["path\ttext", *lines]) + "\n")
    assert build(recordings, "--labels", str(recordings.folder / "t.tsv"), "--valid-percent", "0.3") == 0
    printed = capsys.readouterr().out
    assert "1 of 11 transcripts name no file" in printed and "3 no transcript" in printed
    out = recordings.folder / "out"
    train, valid = ((out / f"{split}.wrd").read_text().splitlines() for split in ("train", "valid"))
    assert len(train) + len(valid) == 10 and train and valid and not set(train) & set(valid)
    code, report = check(out / "train.tsv", "--labels", "ltr", capsys=capsys)
    assert code == 0 and report["labels"]["empty_lines"] == 0
    with open(out / "train.ltr", "a") as file:
        file.write("A |\n")
    code, report = check(out / "train.tsv", "--labels", "ltr", capsys=capsys)
    assert code == 1 and f"has {len(train) + 1} lines" in report["labels"]["problems"][0]


def test_build_segments(recordings, capsys):
    assert build(recordings, "--segments", "0.26", "--ext", "flac", "--valid-percent", "0") == 0
    capsys.readouterr()
    manifest = load_manifest(recordings.folder / "out" / "train.tsv")
    assert [manifest.name(0), manifest.name(1)] == ["rate.flac:0:4000", "rate.flac:4000:4000"]
    code, report = check(recordings.folder / "out" / "train.tsv", "--decode", capsys=capsys)
    assert code == 0 and report["sample_rates"] == {"48000": 2}


def test_check_finds_everything(corpus, capsys):
    corpus.add("good.wav", 8000)
    corpus.add("stereo.wav", wave=np.full((4000, 2), 0.1, np.float32), rate=48000)
    corpus.add("long.wav", 9000)
    corpus.add("short.wav", 100)
    corpus.add("lies.wav", 4000, listed=16000)
    corpus.add("zeros.wav", wave=np.zeros(4000, np.float32))
    corpus.list("missing.wav", 4000)
    path = corpus.manifest()
    limits = ("--min-sample-size", "1000", "--max-sample-size", "8000")
    code, report = check(path, *limits, capsys=capsys)
    assert code == 1
    assert report["entries"] == 7 and report["usable"] == 4
    assert report["sample_rates"] == {"16000": 3, "48000": 1} and report["channels"] == {"1": 3, "2": 1}
    assert report["skipped_by_length"] == {"shorter than 1000 frames": 1}
    assert report["cropped"] == 2  # lies.wav is, by its size column
    assert report["unusable"] == {"length differs from the manifest": 1, "missing": 1}
    assert any(line.startswith(f"{path}:6: ") for line in report["unusable_files"])
    _, report = check(path, *limits, "--decode", capsys=capsys)
    assert report["unusable"]["all zeros"] == 1
    assert main(["manifest", "check", str(path), *limits]) == 1
    text = capsys.readouterr().out
    for part in ("7 entries", "48000 Hz are converted", "missing.wav: missing", "1 shorter than 1000 frames skipped"):
        assert part in text


def test_check_reports_what_is_too_short_for_the_usual_extractor(corpus, capsys):
    for samples in (719, 720, 4000):
        corpus.add(f"{samples}.wav", samples)
    path = corpus.manifest()
    assert STANDARD_EXTRACTOR.receptive_field + STANDARD_EXTRACTOR.stride == 720
    assert check(path, capsys=capsys)[1]["skipped_by_length"] == {"shorter than 720 frames": 1}
    assert check(path, "--min-sample-size", "0", capsys=capsys)[1]["skipped_by_length"] == {}


@pytest.mark.parametrize(
    "options",
    [
        ("--sample-rate", "0"),
        ("--sample-rate", "-16000"),
        ("--min-sample-size", "-1"),
        ("--max-sample-size", "0"),
        ("--max-sample-size", "500", "--min-sample-size", "600"),
    ],
)
def test_wrong_numbers_for_check_are_one_line(corpus, capsys, options):
    corpus.add("a.wav")
    assert main(["manifest", "check", str(corpus.manifest()), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"d2v: error: {options[0]} ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--valid-percent", "1"),
        ("--valid-percent", "nan"),
        ("--segments", "0"),
        ("--segments", "inf"),
        ("--sample-rate", "0"),
        ("--labels", "no.csv"),
        ("--ext", "xyz"),
    ],
)
def test_wrong_options_are_one_line(recordings, capsys, options):
    assert build(recordings, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("d2v: error: ") and error.count("\n") == 1


def test_broken_manifest_is_one_line(tmp_path, capsys):
    assert main(["manifest", "check", str(tmp_path / "no.tsv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
