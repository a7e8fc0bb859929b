"""Logs in, pictures out."""

import json
import sys

import numpy as np
import pytest
import soundfile
from matplotlib import image

from d2v_plugin.cli.main import main
from d2v_plugin.cli.plot import named_logs
from d2v_plugin.errors import UserError
from d2v_plugin.eval.logs import read_log
from d2v_plugin.eval.spectrogram import mask_spans, power_decibels


def hydra(source, record):
    return f"[2026-11-20 10:00:00,123][{source}][INFO] - {json.dumps(record)}"


def captured(source, record):
    return f"2026-11-20 10:00:00 | INFO | {source} | {json.dumps(record)}"


def write_log(path, shape=hydra, kind="pre"):
    lines = ["[2026-11-20 10:00:00,123][fairseq.trainer][INFO] - begin training epoch 1", "noise {not json}"]
    for update in range(10, 60, 10):
        record = {"epoch": 1, "update": 0.5, "loss": str(5 - update / 20), "num_updates": str(update), "lr": "0.0005"}
        if kind == "pre":
            record |= {"target_var": "0.6", "pred_var": "0.4", "ema_decay": "999.5", "student_rank": "20.1"}
        lines.append(shape("train_inner", record))
    error = {"valid_uer": "80", "valid_wer": "95"} if kind == "ctc" else {}
    lines.append(shape("valid", {"epoch": 1, "valid_loss": "4", "valid_num_updates": "50"} | error))
    lines.append(shape("train", {"epoch": 1, "train_loss": "3", "train_num_updates": "50"}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("shape", [hydra, captured])
def test_curves(tmp_path, shape):
    run = read_log(write_log(tmp_path / "a.log", shape))
    assert run.name == "a"
    assert run.train["loss"] == [(10, 4.5), (20, 4.0), (30, 3.5), (40, 3.0), (50, 2.5)]
    assert run.valid["loss"] == [(50, 4.0)]


def test_resumed_run_replaces_what_it_repeats(tmp_path):
    lines = [
        hydra("train_inner", {"loss": str(v), "num_updates": str(u)}) for u, v in ((10, 5), (20, 4), (30, 9), (20, 3))
    ]
    (tmp_path / "a.log").write_text("\n".join(lines))
    assert read_log(tmp_path / "a.log").train["loss"] == [(10, 5.0), (20, 3.0)]


def test_infinities_and_cut_lines_are_passed_over(tmp_path):
    good = hydra("train_inner", {"loss": "2", "num_updates": "10"})
    bad = hydra("train_inner", {"loss": "nan", "num_updates": "20"})
    (tmp_path / "a.log").write_text("\n".join([good, bad, good.replace("10", "30")[:-4] + '"}', good[:-8]]))
    assert read_log(tmp_path / "a.log").train["loss"] == [(10, 2.0)]


def test_epochs_where_there_are_no_intervals(tmp_path):
    (tmp_path / "a.log").write_text(hydra("train", {"train_loss": "3", "train_num_updates": "50"}))
    assert read_log(tmp_path / "a.log").train["loss"] == [(50, 3.0)]


def test_useless_logs(tmp_path):
    (tmp_path / "a.log").write_text("nothing\n")
    with pytest.raises(UserError, match=r"common\.log_format=json"):
        read_log(tmp_path / "a.log")
    with pytest.raises(UserError, match="cannot read the log"):
        read_log(tmp_path / "b.log")


def pixels(path):
    found = image.imread(path)
    assert found.ndim == 3 and found.shape[0] > 300 and found[..., :3].std() > 0.01
    return found


def test_pretraining_pictures(tmp_path, capsys):
    log = write_log(tmp_path / "hydra_train.log")
    assert main(["plot", str(log), "--out", str(tmp_path / "png")]) == 0
    files = capsys.readouterr().out.split()
    assert [file.rsplit("/", 1)[1] for file in files] == ["loss.png", "variance.png", "ema_decay.png"]
    for file in files:
        pixels(file)


def test_several_runs(tmp_path, capsys):
    logs = [write_log(tmp_path / f"{name}.log", captured, "ctc") for name in "ab"]
    assert main(["plot", f"pre-trained={logs[0]}", str(logs[1]), "--out", str(tmp_path / "png")]) == 0
    assert [file.rsplit("/", 1)[1] for file in capsys.readouterr().out.split()] == ["loss.png", "error_rate.png"]


@pytest.mark.parametrize("measure", ["accuracy", "mAP", "mcc", "pearson_and_spearman"])
def test_scores_of_classifiers_on_the_first_subset(tmp_path, capsys, measure):
    lines = []
    for update in (50, 100):
        for subset, value in (("valid", update), ("test", -update)):
            record = {f"{subset}_num_updates": str(update), f"{subset}_{measure}": str(value)}
            lines.append(hydra(subset, record))
    (tmp_path / "a.log").write_text("\n".join(lines) + "\n")
    assert read_log(tmp_path / "a.log").valid[measure] == [(50, 50), (100, 100)]
    assert main(["plot", str(tmp_path / "a.log"), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "score.png")]
    pixels(tmp_path / "score.png")


def test_names(tmp_path):
    same = [tmp_path / run / "hydra_train.log" for run in ("one", "two")]
    assert [name for name, _ in named_logs([str(path) for path in same])] == ["one", "two"]
    assert [name for name, _ in named_logs([f"x={same[0]}", "z.log"])] == ["x", "z"]


@pytest.fixture
def wav(tmp_path):
    time = np.arange(16000) / 8000
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(2 * np.pi * 1000 * time), 8000)
    return tmp_path / "tone.wav"


def test_mask_picture(tmp_path, wav, pretrained, capsys):
    plain = ["plot", "--utterance", str(wav), "--out"]
    assert main([*plain, str(tmp_path / "a"), "--mask-prob", "0.5", "--mask-length", "5"]) == 0
    assert main([*plain, str(tmp_path / "b"), "--mask-from", str(pretrained)]) == 0
    assert main([*plain, str(tmp_path / "c"), "--mask-prob", "0.5", "--mask-length", "5", "--seed", "2"]) == 0
    a, b, c = (pixels(tmp_path / folder / "mask.png") for folder in "abc")
    assert not np.array_equal(a, b) and not np.array_equal(a, c)
    assert capsys.readouterr().out.count("mask.png") == 3


def test_spectrogram_shows_the_tone():
    wave = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    found = power_decibels(wave, 8000)
    # 25 ms at 8 kHz: FFT of 256, bins of 31.25 Hz, one column every 5 ms
    assert found.shape == (129, 201) and found.max() == 0 and found.min() >= -70
    assert (found[:, 20:180].argmax(0) == 32).all()


def test_mask_spans():
    assert mask_spans(np.array([1, 1, 0, 0, 1, 0, 1], bool)) == [(0, 2), (4, 5), (6, 7)]
    assert mask_spans(np.zeros(3, bool)) == []


def test_user_errors_are_one_line(tmp_path, wav, monkeypatch, capsys):
    def error_of(*arguments):
        assert main(["plot", "--out", str(tmp_path / "png"), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "nothing to draw" in error_of()
    assert "--mask-prob must lie in 0..1" in error_of("--utterance", str(wav), "--mask-prob", "1.5")
    error = error_of("--utterance", str(wav), "--mask-prob", "1", "--mask-length", "100")
    assert "leaves nothing of 99 frames" in error
    assert "no such file" in error_of("--utterance", str(tmp_path / "none.wav"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in error_of(str(wav))
