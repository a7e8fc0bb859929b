"""``make demo`` on somebody's own recordings, and the budgets of ``make demo-full``, on a small scale."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from audio_corpus import Corpus

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = ("one", "two", "three", "four", "five", "six", "seven")


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    corpus = Corpus(folder)
    for n in range(49):
        corpus.add(f"{n}.wav", 12000)
        (folder / f"{n}.txt").write_text(f"{WORDS[n // 7]} {WORDS[n % 7]}\n")
    return folder


def demo(*arguments):
    run = [sys.executable, EXAMPLES / "demo" / "run.py", "speech", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(run, capture_output=True, text=True, env=environment, timeout=600)


def test_own_recordings_with_transcripts_give_every_number_and_picture(recordings, tmp_path):
    out = tmp_path / "out"
    done = demo("--data", recordings, "--out", out, "--updates", 10, 10)
    assert done.returncode == 0, done.stdout + done.stderr

    commands = re.findall(r"^\$ OMP_NUM_THREADS=\d (.*)$", done.stdout, re.MULTILINE)
    programs = {line.split()[0].rpartition("/")[2] for line in commands}
    assert programs == {"python", "fairseq-hydra-train", "d2v"}
    results = json.loads((out / "results.json").read_text())
    for run in ("finetune", "scratch"):
        assert results[run]["cer"] > 0 and results[run]["characters"] > 0
        assert (out / run / "hypotheses.tsv").read_text().count("\n") > 1
    assert len(results["probe"]["trained"]) == len(results["probe"]["untrained"]) == 4
    assert all(0 <= row["letters"] <= 1 for row in results["probe"]["trained"])
    assert any("--align" in line and "scratch" in line for line in commands)
    assert results["seconds"].keys() >= {"prepare", "pretrain", "finetune", "scratch", "total"}
    assert (out / "results.md").read_text() in done.stdout
    pictures = {str(p.relative_to(out / "pictures")) for p in (out / "pictures").rglob("*.png")}
    assert pictures >= {"loss.png", "variance.png", "ema_decay.png", "mask.png", "ctc/error_rate.png"}


def test_a_command_that_fails_ends_the_demo_with_its_last_lines(tmp_path):
    (tmp_path / "empty").mkdir()
    done = demo("--data", tmp_path / "empty", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "d2v demo: error: prepare ended with exit code" in done.stderr


def test_label_budgets_are_nested_and_as_long_as_they_say(tmp_path, monkeypatch):
    for folder in ("demo", "speech/demo"):
        monkeypatch.syspath_prepend(str(EXAMPLES / folder))
    from full import write_budget

    lines = [f"{n}.wav\t{16000 * (1 + n % 14)}" for n in range(120)]
    (tmp_path / "train.tsv").write_text("\n".join(["root", *lines]) + "\n")
    (tmp_path / "train.ltr").write_text("\n".join(f"T {n} |" for n in range(120)) + "\n")
    chosen = {}
    for minutes in (3, 6):
        write_budget(tmp_path, minutes)
        root, *rows = (tmp_path / f"train_{minutes}min.tsv").read_text().splitlines()
        texts = (tmp_path / f"train_{minutes}min.ltr").read_text().splitlines()
        seconds = [int(row.split("\t")[1]) / 16000 for row in rows]
        assert root == "root" and max(seconds) <= 12
        assert 60 * minutes <= sum(seconds) < 60 * minutes + 12
        assert texts == [f"T {row.split('.')[0]} |" for row in rows]
        chosen[minutes] = rows
    assert chosen[6][: len(chosen[3])] == chosen[3]
