"""The demo's data: prompts from packages that are already there, and the user's own recordings. No network."""

import gzip
import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile as sf
from audio_corpus import Corpus, tone

from d2v_plugin.data.audio.manifest import load_manifest

SCRIPT = Path(__file__).parents[3] / "examples" / "speech" / "prepare_prompts.py"
TEXTS = """; comment
hello: Hello, World!
press: Press 1, or # [beep]
again: hello world
beep: [this is a tone]
tt-monkeys: [monkeys]
silence/1: (1 second of silence)
spy-iax2: IAX (note: does not say "2")
dir-multi1: Press ...
absent: not recorded
vm-1: one
vm-2: two
vm-3: three
vm-4: four
vm-5: five
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_prompts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def unpacked(tmp_path):
    """What dpkg leaves, with the archives beside it, so that nothing is downloaded."""
    dest = tmp_path / "dest"
    for package in ("asterisk-core-sounds-en", "asterisk-core-sounds-en-wav", "asterisk-core-sounds-fr-wav"):
        (dest / "unpacked/usr/share/doc" / package).mkdir(parents=True)
        (dest / "debs").mkdir(exist_ok=True)
        (dest / "debs" / f"{package}_1.deb").touch()
    with gzip.open(dest / "unpacked/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz", "wt") as file:
        file.write(TEXTS)
    sounds = dest / "unpacked/usr/share/asterisk/sounds"
    names = [line.partition(":")[0] for line in TEXTS.splitlines()[1:] if not line.startswith("absent")]
    for folder, chosen in (("en_US_f_Allison", [*names, "untold"]), ("fr_CA_f_June", ["beep", "hello", "hmm"])):
        corpus = Corpus(sounds / folder)
        for name in chosen:
            corpus.add(f"{name}.wav", 1000 if name == "hmm" else 4000, rate=8000)
    return dest


def test_prompts(script, unpacked, capsys):
    assert script.main(["--dest", str(unpacked), "--languages", "en", "fr"]) == 0
    printed = capsys.readouterr().out
    assert "Allison Smith" in printed and "CC-BY-SA-3.0" in printed
    words, entries = {}, {}
    for split in ("train", "valid", "test"):
        manifest = load_manifest(unpacked / f"{split}.tsv")
        texts = (unpacked / f"{split}.wrd").read_text().splitlines()
        assert len(texts) == len(manifest)
        words |= {manifest.name(i): text for i, text in enumerate(texts)}
        entries |= {manifest.name(i): split for i in range(len(manifest))}
        for i in range(len(manifest)):
            info = sf.info(manifest.entry(i).path)
            assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
            assert info.frames == manifest.sizes[i] == 8000
    assert words["en/hello.wav"] == words["en/again.wav"] == "HELLO WORLD"
    assert entries["en/hello.wav"] == entries["en/again.wav"]
    assert words["en/press.wav"] == "PRESS ONE OR POUND"
    assert words["en/spy-iax2.wav"] == "IAX"
    assert words["en/dir-multi1.wav"] == "PRESS"
    assert not {"en/beep.wav", "en/tt-monkeys.wav", "en/silence/1.wav", "en/untold.wav"} & set(words)
    assert "4 no speech, 1 no transcript of speech, 1 shorter than 0.3 s" in printed
    pretraining = load_manifest(unpacked / "pretrain.tsv")
    names = {pretraining.name(i) for i in range(len(pretraining))}
    assert names == {name for name, split in entries.items() if split == "train"} | {"fr/hello.wav"}
    assert (unpacked / "dict.ltr.txt").read_text().startswith("| ")


def test_own_recordings_without_transcripts(script, tmp_path, capsys):
    corpus = Corpus(tmp_path / "in")
    for i in range(4):
        corpus.add(f"{i}.flac", 48000, rate=48000)
    corpus.add("long.wav", 16000 * 70)
    (tmp_path / "in" / "README.txt").write_text("no transcript")
    assert script.main(["--dest", str(tmp_path / "out"), "--data", str(tmp_path / "in")]) == 0
    assert "serve pre-training only" in capsys.readouterr().out
    train, valid, pretraining = (load_manifest(tmp_path / "out" / f"{s}.tsv") for s in ("train", "valid", "pretrain"))
    assert len(train) + len(valid) == 4 + 3 and len(pretraining) == len(train)
    assert not (tmp_path / "out" / "train.ltr").exists()


@pytest.mark.parametrize("kind", ["table", "txt"])
def test_own_recordings_with_transcripts(script, tmp_path, kind):
    corpus = Corpus(tmp_path / "in")
    texts = ["Hello there!", "Good-bye.", "Hello there", "Yes", "No"]
    for i, text in enumerate(texts):
        corpus.add(f"a/{i}.flac", 8000)
        if kind == "txt":
            (tmp_path / f"in/a/{i}.txt").write_text(text)
    if kind == "table":
        rows = [f'"a/{i}.flac","{text}"' for i, text in enumerate(texts)]
        (tmp_path / "in/t.csv").write_text("\n".join(["path,text", *rows]))
    corpus.add("untold.wav", 8000)
    assert script.main(["--dest", str(tmp_path / "out"), "--data", str(tmp_path / "in")]) == 0
    found = [(tmp_path / f"out/{split}.wrd").read_text().splitlines() for split in ("train", "valid", "test")]
    assert sorted(sum(found, [])) == ["GOOD BYE", "HELLO THERE", "HELLO THERE", "NO", "YES"]
    assert all(found)


@pytest.mark.parametrize("trouble", ["no apt-get", "no network"])
def test_failed_download_says_what_to_do(script, tmp_path, capsys, monkeypatch, trouble):
    if trouble == "no apt-get":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(shutil, "which", lambda name: name)
        failed = subprocess.CompletedProcess([], 100, "", "W: sandbox\nE: Unable to locate package\nW: more\n")
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    assert script.main(["--dest", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "DATA=/path/to/wavs" in error
    assert ("Unable to locate package" in error) == (trouble == "no network")


def test_one_recording_cannot_be_divided(script, tmp_path, capsys):
    Corpus(tmp_path / "in").add("a.wav", wave=tone(8000))
    assert script.main(["--dest", str(tmp_path / "out"), "--data", str(tmp_path / "in")]) == 2
    assert "at least two different recordings" in capsys.readouterr().err
