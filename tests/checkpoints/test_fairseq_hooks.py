"""The replaced functions, called the way fairseq calls them."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data.dictionary import Dictionary
from fairseq.distributed import utils as distributed_utils
from tiny_training import ROOT, scaled_down, train, write_data

from d2v_plugin.checkpoints import read_checkpoint, writing
from d2v_plugin.errors import UserError
from d2v_plugin.fairseq_hooks import edit_distance, install

YAML = ROOT / "examples" / "speech" / "base_librispeech.yaml"
CTC = ROOT / "examples" / "speech" / "ctc_base_10m.yaml"


@pytest.fixture(autouse=True)
def _installed():
    install()


def updates_in(path: Path) -> int:
    return read_checkpoint(path)["optimizer_history"][-1]["num_updates"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fail_after(monkeypatch, good: int) -> None:
    """The disk takes ``good`` more checkpoint files or copies and is then full."""
    original = writing._replacing
    left = [good]

    def replacing(path):
        left[0] -= 1
        if left[0] < 0:
            monkeypatch.setattr(writing.os, "fsync", full)
        return original(path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "_replacing", replacing)


def test_installing_twice_changes_nothing():
    before = checkpoint_utils.torch_persistent_save, checkpoint_utils.PathManager, sys.excepthook
    install()
    assert (checkpoint_utils.torch_persistent_save, checkpoint_utils.PathManager, sys.excepthook) == before


def test_other_modules_keep_torch_load(tmp_path):
    torch.save(torch.ones(2), tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt"), torch.ones(2))
    assert checkpoint_utils.torch.nn is torch.nn


def test_checkpoint_with_a_dictionary_loads(tmp_path):
    letters = Dictionary()
    letters.add_symbol("a")
    state = {"model": {"w": torch.ones(2)}, "cfg": {"task": {"labels": "ltr"}}, "args": None}
    history = {"criterion_name": "c", "optimizer_name": "o", "lr_scheduler_state": {}, "num_updates": 1}
    state |= {"extra_state": {"train_iterator": {"epoch": 1}}, "optimizer_history": [history]}
    state |= {"last_optimizer_state": None}
    state |= {"task_state": {"target_dictionary": letters}}
    checkpoint_utils.torch_persistent_save(state, str(tmp_path / "x.pt"))
    read = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "x.pt"))
    assert read["task_state"]["target_dictionary"].index("a") == letters.index("a")
    assert read["cfg"].task.labels == "ltr"


def test_missing_and_foreign_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "gone.pt"))
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"has no model \(found: epoch, state_dict\)"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "x.pt"))
    torch.save({"model": {}}, tmp_path / "y.pt")
    with pytest.raises(UserError, match=r"y\.pt was not written by fairseq: it has no best_loss"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "y.pt"))


def test_full_disk_in_training_keeps_the_last_good_checkpoint_and_resumes(tmp_path, monkeypatch):
    data, out = write_data(tmp_path), tmp_path / "out"
    train(scaled_down(YAML, data, out))
    assert updates_in(out / "checkpoint_last.pt") == 2

    with monkeypatch.context() as patch:
        fail_after(patch, 0)
        with pytest.raises(UserError, match=r"cannot save .*No space left on device.*start the same command again"):
            train(scaled_down(YAML, data, out, optimization__max_update=3))
    assert updates_in(out / "checkpoint_last.pt") == 2
    assert names(out) == {"checkpoint_last.pt"}

    train(scaled_down(YAML, data, out, optimization__max_update=4))
    assert updates_in(out / "checkpoint_last.pt") == 4


def test_full_disk_while_copying_keeps_the_copy_that_was_there(tmp_path, monkeypatch):
    """fairseq saves checkpoint_1_3.pt and copies it to checkpoint_last.pt; room is left for the first alone."""
    data, out = write_data(tmp_path), tmp_path / "out"
    often = {"checkpoint__save_interval_updates": 1, "checkpoint__keep_interval_updates": 5}
    # One recording a batch, so that both updates lie within an epoch.
    often |= {"dataset__batch_size": 1}
    train(scaled_down(YAML, data, out, **often))
    assert updates_in(out / "checkpoint_last.pt") == 2
    with monkeypatch.context() as patch:
        fail_after(patch, 1)
        with pytest.raises(UserError, match=r"cannot save .*checkpoint_last\.pt"):
            train(scaled_down(YAML, data, out, optimization__max_update=4, **often))
    assert updates_in(out / "checkpoint_last.pt") == 2
    assert updates_in(out / "checkpoint_1_3.pt") == 3


def test_damaged_last_checkpoint_stops_the_resume(tmp_path):
    data, out = write_data(tmp_path), tmp_path / "out"
    train(scaled_down(YAML, data, out))
    last = out / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is truncated"):
        train(scaled_down(YAML, data, out, optimization__max_update=4))


@pytest.mark.parametrize(
    ("yaml", "kind", "own"),
    [("base_librispeech", "speech", "data2vec_audio"), ("base_librispeech_v2", "speech", "data2vec_multi of AUDIO")],
)
def test_weights_of_another_kind_of_model_are_named_as_such(tmp_path, yaml, kind, own):
    """And not by each of the weights and settings that differ."""
    data, out, path = write_data(tmp_path, kind), tmp_path / "out", tmp_path / "text.pt"
    saved = {"model": {"_name": "data2vec_multi", "supported_modality": "TEXT"}}
    torch.save({"cfg": saved, "model": {"blocks.0.norm1.weight": torch.zeros(2)}}, path)
    with pytest.raises(UserError, match=f"holds a data2vec_multi of TEXT and this run trains a {own}; give"):
        yaml = ROOT / "examples" / kind / f"{yaml}.yaml"
        train(scaled_down(yaml, data, out, checkpoint__finetune_from_model=str(path)))


def test_resuming_another_model_says_what_differs(tmp_path):
    data, out = write_data(tmp_path), tmp_path / "out"
    train(scaled_down(YAML, data, out))
    with pytest.raises(UserError, match=r"is of another model \(.*32, 2, 19.*48, 3, 19.*another checkpoint\.save_dir"):
        train(scaled_down(YAML, data, out, model__encoder_embed_dim=48))
    with pytest.raises(UserError, match=r"is of another model \(.*layers\.2"):
        train(scaled_down(YAML, data, out, model__encoder_layers=3))
    with pytest.raises(UserError, match=r"another criterion or optimizer; take its weights alone with \+checkpoint"):
        train(scaled_down(YAML, data, out, optimizer___name="adam"))


def test_restore_file_that_is_missing_is_not_a_fresh_start(tmp_path):
    data, out = write_data(tmp_path), tmp_path / "out"
    with pytest.raises(UserError, match=r"restore_file=gone\.pt does not exist"):
        train(scaled_down(YAML, data, out, checkpoint__restore_file="gone.pt"))
    assert not (out / "checkpoint_last.pt").exists()


def test_fine_tuning_from_the_wrong_file_names_the_right_one(tmp_path):
    data = write_data(tmp_path)
    train(scaled_down(YAML, data, tmp_path / "pretrained"))
    pretrained = tmp_path / "pretrained" / "checkpoint_last.pt"
    train(scaled_down(CTC, data, tmp_path / "ctc", pretrained))

    def refused(match, path=None, **more):
        with pytest.raises(UserError, match=match):
            train(scaled_down(CTC, data, tmp_path / "new", path, **more))

    refused(r"model\.w2v_path is not set")
    refused(r"no checkpoint at .*gone\.pt", tmp_path / "gone.pt")
    refused(r"holds a wav2vec_ctc, which is not a pre-trained", tmp_path / "ctc" / "checkpoint_last.pt")
    refused(r"task\.normalize=False differs .* set task\.normalize=True", pretrained, task__normalize=False)
    state = read_checkpoint(pretrained)
    state["cfg"]["model"]["_name"] = "something_else"
    torch.save(state, tmp_path / "other.pt")
    refused(r"a model called something_else", tmp_path / "other.pt")


def _receive(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    install()
    sent = {"model": {"w": torch.arange(3.0)}, "n": 3, "l": [torch.ones(2), "x"]} if rank == 0 else None
    got = distributed_utils.broadcast_object(sent, 0, torch.distributed.group.WORLD)
    torch.save(got, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_rank_0_sends_a_checkpoint_to_the_others(tmp_path):
    """With a bare ``torch.load`` the receiver raises UnpicklingError on fairseq's placeholder class."""
    torch.multiprocessing.spawn(_receive, args=(29_000 + os.getpid() % 2000, str(tmp_path)), nprocs=2)
    got = torch.load(tmp_path / "1.pt")
    assert torch.equal(got["model"]["w"], torch.arange(3.0))
    assert got["n"] == 3
    assert torch.equal(got["l"][0], torch.ones(2))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("kitten", "sitting", 3), ([1, 2, 3], [1, 3], 1), (["a", "b"], [], 2), ([], [], 0)],
)
def test_edit_distance(first, second, expected):
    assert edit_distance.distance(first, second) == expected


def test_edit_distance_answers_fairseqs_import():
    import editdistance

    assert editdistance.eval(["a", "b"], ["a", "c"]) == 1


def command(*overrides: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "fairseq_cli.hydra_train", "--config-dir", "examples/speech"]
    words += ["--config-name", "base_librispeech", "distributed_training.distributed_world_size=1", *overrides]
    words += ["++common.cpu=true", "common.fp16=false"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_training_error_is_one_line_and_the_rest_a_traceback(capsys):
    for error, expected in ((UserError("change x"), "d2v: error: change x\n"), (KeyError("x"), "KeyError: 'x'\n")):
        sys.excepthook(type(error), error, None)
        assert capsys.readouterr().err.endswith(expected)


def test_the_user_error_that_fairseq_replaced_is_told(capsys):
    """As trainer.py does it: another exception, raised while the first is handled."""

    def replaced(first, kind):
        try:
            try:
                raise first
            except Exception:
                raise kind("Cannot load model parameters from checkpoint x.pt")  # noqa: B904
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
        return capsys.readouterr().err

    assert replaced(UserError("change x"), Exception) == "d2v: error: change x\n"
    assert "Traceback" in replaced(KeyError("x"), Exception)
    assert "Traceback" in replaced(UserError("change x"), KeyError)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("++model.mask_probability=0.5", "configuration: Key 'mask_probability' not in"),
        ("++task.max_sample_size=abc", "configuration: max_sample_size: Value 'abc'"),
    ],
)
def test_a_key_that_is_misspelt_or_mistyped_is_one_line(tmp_path, override, expected):
    done = command(f"task.data={tmp_path}", f"checkpoint.save_dir={tmp_path}/run", override)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"d2v: error: {expected}")


def test_rates_and_schedules_that_cannot_be_are_one_line(tmp_path):
    data, out = write_data(tmp_path), tmp_path / "out"
    with pytest.raises(UserError, match=r"optimization\.lr must not be negative, got -1"):
        train(scaled_down(YAML, data, out, optimization__lr=[-1]))
    for ratio, message in (([0.5, 0.4, 0.5], "must add up to 1"), ([0.5, 0.5, 0.0], "a stage has no updates")):
        with pytest.raises(UserError, match=f"lr_scheduler tri_stage: .*{message}"):
            train(scaled_down(YAML, data, out, lr_scheduler__phase_ratio=ratio))


def test_user_error_ends_the_command_with_one_line(tmp_path):
    done = command("task.data=nowhere", f"checkpoint.save_dir={tmp_path}/run")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("d2v: error: ")
    # Hydra's record of the run and the checkpoints share one folder, wherever the command is started.
    assert (tmp_path / "run" / ".hydra" / "config.yaml").is_file()


def test_the_deprecation_that_every_update_meets_is_not_repeated(recwarn):
    from d2v_plugin.fairseq_hooks import repeated_warnings

    repeated_warnings.install()
    warnings.warn("`torch.cuda.amp.autocast(args...)` is deprecated.", FutureWarning, stacklevel=1)
    assert not recwarn.list
    warnings.warn("something else", FutureWarning, stacklevel=1)
    assert len(recwarn.list) == 1
