"""The demos' drivers without their trainings: commands that can be copied, failures that show their log, its tables."""

import json
import os
import subprocess
import sys
import time

import pytest
from tiny_training import ROOT

EXAMPLES = ROOT / "examples"
FOLDERS = [EXAMPLES / name for name in ("demo", "speech/demo", "vision/demo", "text/demo")]


@pytest.fixture
def driver(monkeypatch):
    """Imports a module of the demos' folders by name; they import each other so."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(folder))

    def get(name):
        __import__(name)
        return sys.modules[name]

    yield get
    for folder in FOLDERS:
        for path in folder.glob("*.py"):
            sys.modules.pop(path.stem, None)


def test_a_printed_command_does_the_same_when_typed(driver, tmp_path, capfd):
    commands = driver("commands")
    target = tmp_path / "with blank"
    command = commands.Command("write", ["python", "-c", "import sys; open(sys.argv[1], 'w').write('x')", target])
    commands.run_together(command)
    printed = capfd.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("$ "))
    assert "write: " in printed
    target.unlink()
    subprocess.run(["bash", "-c", line[2:]], cwd=ROOT, check=True, timeout=60)
    assert target.read_text() == "x"


def test_a_failed_command_names_its_log_and_shows_the_end(driver, tmp_path):
    commands = driver("commands")
    words = ["python", "-c", "print('the reason'); raise SystemExit(3)"]
    with pytest.raises(commands.CommandFailed, match=r"(?s)fine-tuning ended with exit code 3.*x\.log.*the reason"):
        commands.run_together(commands.Command("fine-tuning", words, tmp_path / "x.log"))


def test_stopping_the_driver_stops_its_trainings(driver, tmp_path):
    """A kill of the driver alone, not of the whole terminal."""
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    script = (
        "import signal, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import commands\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "commands.run_together(commands.Command('t', ['python', '-c', sys.argv[2]], Path(sys.argv[3])))\n"
    )
    run = [sys.executable, "-c", script, str(EXAMPLES / "demo"), child, str(tmp_path / "t.log")]
    process = subprocess.Popen(run, stderr=subprocess.PIPE, text=True)
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=30)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_dozen_recordings_are_too_few_to_probe_and_that_is_all(driver, tmp_path, capsys):
    demo = driver("speech_demo").Demo(tmp_path, (10, 10))
    demo.results["data"] = {split: {"recordings": n} for split, n in (("train", 10), ("valid", 1), ("test", 1))}
    demo.probe(labelled=True)
    assert "No probe: it takes 10 recordings to fit and 2 to score" in capsys.readouterr().out
    assert "probe" not in demo.results


def counting(driver, folder, name="count", **more):
    """A command that adds a line to ``folder/name`` each time it runs."""
    script = f"import pathlib; p = pathlib.Path(r'{folder}', '{name}'); p.open('a').write('x')"
    return driver("commands").Command(name, ["python", "-c", script], **more)


def stages(driver, out):
    return driver("stages").Stages(out)


def test_a_demo_that_was_stopped_goes_on_where_it_was(driver, tmp_path, capsys):
    for ran in ("x", "x"):
        demo = stages(driver, tmp_path)
        demo.prepare("Data", counting(driver, tmp_path, "data"))
        demo.step("Pre-training", counting(driver, tmp_path, "pretrain"))
        assert (tmp_path / "pretrain").read_text() == ran
    assert (tmp_path / "data").read_text() == "xx"
    assert "== Pre-training: done before, " in capsys.readouterr().out
    assert demo.results["seconds"].keys() == {"data", "pretrain"} and demo.wall > demo.results["seconds"]["data"] / 2


def test_a_demo_that_ended_starts_over(driver, tmp_path, capsys):
    for ran in ("x", "xx"):
        demo = stages(driver, tmp_path)
        demo.prepare("Data", counting(driver, tmp_path, "data"), "stale")
        assert not (tmp_path / "stale").exists()
        (tmp_path / "stale").mkdir()
        demo.step("Pre-training", counting(driver, tmp_path, "pretrain"))
        assert (tmp_path / "pretrain").read_text() == ran
        demo.finish(lambda results: f"{len(results['seconds'])} stages\n")
    assert (tmp_path / "results.md").read_text() == "3 stages\n"
    assert json.loads((tmp_path / "results.json").read_text()) == demo.results
    assert "replacing the earlier results" in capsys.readouterr().out


def test_other_data_starts_over(driver, tmp_path):
    for name, ran in (("a", "x"), ("b", "xx")):
        demo = stages(driver, tmp_path)
        demo.prepare("Data", counting(driver, tmp_path, name))
        demo.step("Pre-training", counting(driver, tmp_path, "pretrain"))
        assert (tmp_path / "pretrain").read_text() == ran


def test_what_a_stopped_training_left_is_removed_first(driver, tmp_path):
    folder = tmp_path / "pretrain"
    folder.mkdir()
    (folder / "checkpoint_last.pt").write_text("half way")
    stages(driver, tmp_path).step("Pre-training", counting(driver, tmp_path, writes=folder))
    assert not folder.exists() and (tmp_path / "count").exists()


def test_commands_side_by_side_are_done_together_or_not_at_all(driver, tmp_path):
    demo = stages(driver, tmp_path)
    demo.step("One", counting(driver, tmp_path, "a"))
    demo.step("Two", counting(driver, tmp_path, "a"), counting(driver, tmp_path, "b"))
    assert [(tmp_path / name).read_text() for name in "ab"] == ["xx", "x"]


def test_earlier_results_stay_until_there_is_something_to_train_on(driver, tmp_path):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "results.md").write_text("x")
    with pytest.raises(driver("commands").CommandFailed, match="prepare ended"):
        driver("speech_demo").Demo(tmp_path, (10, 10)).run(tmp_path / "nowhere")
    assert (tmp_path / "pretrain").exists() and (tmp_path / "results.md").exists()


def test_training_progress_is_read_from_the_log(driver, tmp_path):
    commands = driver("commands")
    record = json.dumps({"loss": "4.2", "num_updates": "50"})
    command = commands.Command("t", ["python"], tmp_path / "t.log", updates=100)
    command._follow([f"[2026-01-02 03:04:05,678][train_inner][INFO] - {record}\n", "something else\n"])
    assert command.progress == "update 50 of 100, loss 4.2"
    assert command.log.read_text().count("\n") == 2


def test_a_budget_stops_at_its_minutes_and_keeps_labels_beside_their_audio(driver, tmp_path, capsys):
    full = driver("full")
    lines = [f"{n}.wav\t{(4 + n % 10) * 16000}" for n in range(60)]
    (tmp_path / "train.tsv").write_text("\n".join(["root", *lines]) + "\n")
    (tmp_path / "train.ltr").write_text("".join(f"{n} |\n" for n in range(60)))
    actual = full.write_budget(tmp_path, 3)
    assert capsys.readouterr().out == ""
    root, *chosen = (tmp_path / "train_3min.tsv").read_text().splitlines()
    labels = (tmp_path / "train_3min.ltr").read_text().splitlines()
    frames = [int(line.split("\t")[1]) for line in chosen]
    assert root == "root" and [line.split(".")[0] for line in chosen] == [label.split()[0] for label in labels]
    assert max(frames) <= 12 * 16000
    assert 180 <= sum(frames) / 16000 < 180 + 12
    assert chosen != lines[: len(chosen)]
    assert actual == sum(frames) / 16000 / 60


def test_a_budget_that_is_not_there_is_told(driver, tmp_path, capsys):
    (tmp_path / "train.tsv").write_text(f"root\na.wav\t{6 * 16000}\nlong.wav\t{13 * 16000}\nb.wav\t{9 * 16000}\n")
    (tmp_path / "train.ltr").write_text("A |\nL |\nB |\n")
    assert driver("full").write_budget(tmp_path, 3) == 0.25
    assert capsys.readouterr().out == "train_3min: all recordings of up to 12 s make 0.2 minutes, not 3\n"


def test_tables_say_what_was_measured(driver):
    report = driver("report")
    runs = {"finetune": [{"cer": 30.0, "wer": 60.0}, {"cer": 40.0, "wer": 70.0}]}
    runs["scratch"] = [{"cer": 50.0, "wer": 80.0}, {"cer": 50.0, "wer": 80.0}]
    table = report.write_full_table({10: runs}, {10: 8.7}, 120)
    assert "35.0 +- 7.1 %" in table and "50.0 +- 0.0 %" in table and "2 minutes" in table
    assert "| 8.7 min |" in table and "10 min" not in table

    probe = [{"layer": 1, "mfcc": 0.5, "letters": None, "letters_error": None}]
    results = {"data": {"train": {"recordings": 3, "minutes": 1.25}, "test": None}, "seconds": {"pretrain": 12.3}}
    results["probe"] = {"trained": probe, "untrained": probe, "chance": None}
    without = report.write_table(results)
    assert "| train | 3 | 1.2 |" in without and "| pretrain | 12 |" in without and "character" not in without
    assert "| 1 | 0.500 | 0.500 |" in without and "letter" not in without
    results |= {"finetune": runs["finetune"][0], "scratch": runs["scratch"][0]}
    results["seconds"] |= {"finetune": 20.0, "scratch": 21.0}
    probe[0] |= {"letters": 0.381, "letters_error": 0.0187}
    results["probe"]["chance"] = 0.158
    labelled = report.write_table(results)
    assert "| 30.0 % | 60.0 % | 20 |" in labelled
    assert "letter accuracy (chance 15.8 %), pre-trained | untrained |" in labelled
    assert "| 1 | 0.500 | 0.500 | 38.1 +- 1.9 % | 38.1 +- 1.9 % |" in labelled
