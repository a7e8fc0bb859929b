"""Three ways to start a run: each does what it says, says so in one line, and none writes over another run unasked."""

import logging
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import upstream
from omegaconf import OmegaConf
from tiny_training import ROOT, resolved, scaled_down, train, write_data
from training_state import assert_equal, flatten

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError

FILES = {"1.0": "speech/base_librispeech.yaml", "2.0": "speech/base_librispeech_v2.yaml"}
# what is saved is what the run began with
STILL = {"optimization__lr": [0.0], "model__ema_decay": 1.0, "model__ema_end_decay": 1.0}
CTC = ROOT / "examples" / "speech" / "ctc_base_10m.yaml"
TEXT = ROOT / "examples" / "text" / "base_books_wiki_v2.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=FILES)
def earlier(request, data, tmp_path_factory):
    """``(YAML file, folder with a run of two updates)``; tests work on a copy of the folder."""
    path, folder = ROOT / "examples" / FILES[request.param], tmp_path_factory.mktemp("earlier")
    train(scaled_down(path, data, folder, model__ema_anneal_end_step=5))
    return path, folder


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """As ``earlier``, 1.0 alone: for what happens before any model is looked at."""
    path, folder = ROOT / "examples" / FILES["1.0"], tmp_path_factory.mktemp("one")
    train(scaled_down(path, data, folder))
    return path, folder


@pytest.fixture
def told(caplog):
    """Gives the lines about the start that were logged since it was last asked."""
    caplog.set_level(logging.INFO, logger="d2v_plugin.fairseq_hooks.resuming")

    def lines():
        found = [record.getMessage() for record in caplog.records if record.getMessage().startswith("start: ")]
        caplog.clear()
        return found

    return lines


def copied(folder, to):
    """A copy of a run."""
    return shutil.copytree(folder, to)


def last(folder):
    return read_checkpoint(folder / "checkpoint_last.pt")


def updates(folder) -> int:
    return last(folder)["optimizer_history"][-1]["num_updates"]


def files(folder) -> set[str]:
    return {path.name for path in folder.glob("*.pt")}


def only(lines: list[str]) -> str:
    assert len(lines) == 1, lines
    return lines[0]


def moved(a: dict, b: dict) -> set[str]:
    """Names of weights that differ."""
    before, after = dict(flatten(a)), dict(flatten(b))
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key].float(), after[key].float())}


def test_fresh_then_resume(earlier, data, tmp_path, told):
    path, folder = earlier
    out = tmp_path / "run"
    train(scaled_down(path, data, out))
    assert re.fullmatch(rf"start: fresh at update 0, nothing is loaded; checkpoints go to {out}", only(told()))
    train(scaled_down(path, data, out, optimization__max_update=3, checkpoint__start="resume"))
    line, changed = told()
    assert line == f"start: resume from {out}/checkpoint_last.pt at update 2 of 3"
    assert changed == "start: this run differs from the one that saved it: optimization.max_update: 2 -> 3"
    assert updates(out) == 3


def test_weights_alone_begin_at_update_0_with_the_teacher_that_was_saved(earlier, data, tmp_path, told):
    path, folder = earlier
    source = folder / "checkpoint_last.pt"
    out = tmp_path / "run"
    train(scaled_down(path, data, out, checkpoint__init_from=str(source), **STILL))
    line = only(told())
    assert line.startswith(f"start: init_from {source}, saved at update 2: weights only (student and teacher)")
    assert moved(last(folder)["model"], last(out)["model"]) == set()
    assert "_ema" in last(out)["model"] and updates(out) == 2


def test_the_teacher_can_start_as_a_copy_of_the_student(earlier, data, tmp_path, told, request):
    path, folder = earlier
    source = folder / "checkpoint_last.pt"
    kept = tmp_path / "no_teacher.pt"
    state = read_checkpoint(source)
    teacher = dict(state["model"].pop("_ema"))
    torch.save(state, kept)
    # 1.0's teacher is the transformer alone, under the names it has there
    prefix = "encoder." if "1.0" in request.node.name else ""
    of_student = {name: state["model"][prefix + name] for name in teacher}
    assert moved(of_student, teacher)
    for name, source, more in (("a", kept, {}), ("b", folder / "checkpoint_last.pt", {"init_teacher": "student"})):
        more = {f"checkpoint__{key}": value for key, value in more.items()}
        train(scaled_down(path, data, tmp_path / name, checkpoint__init_from=str(source), **STILL, **more))
        assert "a copy of the student" in only(told())
        found = last(tmp_path / name)["model"]
        assert moved(of_student, found["_ema"]) == set()


def test_the_decay_of_the_teacher_begins_anew(earlier, data, tmp_path):
    """One update from the same weights: a teacher whose decay were that of the file's update would move otherwise."""
    path, folder = earlier
    source = folder / "checkpoint_last.pt"
    for name, start in (("a", 0.5), ("b", 0.9)):
        decay = {"model__ema_decay": start, "model__ema_end_decay": 1.0, "model__ema_anneal_end_step": 2}
        train(scaled_down(path, data, tmp_path / name, checkpoint__init_from=str(source), **decay))
    a, b = (last(tmp_path / name)["model"]["_ema"] for name in "ab")
    # the file is at update 2, where both schedules have come to 1 and no teacher would move
    assert moved(a, b) and moved(a, last(folder)["model"]["_ema"])


def test_the_same_command_resumes_what_it_began(one, data, tmp_path, told):
    """As on a cluster that starts a job again."""
    path, folder = one
    out, source = tmp_path / "run", str(folder / "checkpoint_last.pt")
    train(scaled_down(path, data, out, checkpoint__init_from=source))
    told()
    # fairseq's name means the same
    train(scaled_down(path, data, out, optimization__max_update=3, checkpoint__finetune_from_model=source))
    assert told()[0] == f"start: resume from {out}/checkpoint_last.pt at update 2 of 3"
    train(scaled_down(path, data, out, optimization__max_update=3, checkpoint__init_from=source))
    assert "nothing is left to do, raise optimization.max_update" in told()[0]


def test_another_run_is_not_written_over(one, data, tmp_path, told):
    path, folder = one
    out, source = copied(folder, tmp_path / "run"), str(folder / "checkpoint_last.pt")
    untouched = (out / "checkpoint_last.pt").read_bytes()

    def refused(match, **more):
        with pytest.raises(UserError, match=match):
            train(scaled_down(path, data, out, optimization__max_update=3, **more))
        assert (out / "checkpoint_last.pt").read_bytes() == untouched

    refused(
        r"holds a run that began without the weights of another, not with checkpoint\.init_from=.*another save_dir, "
        r"add \+checkpoint\.start=resume .*\+checkpoint\.start=fresh",
        checkpoint__init_from=source,
    )
    refused(r"restore_file=.* would start another run over checkpoint_last\.pt", checkpoint__restore_file=source)
    refused(
        r"reset_optimizer=true would start a new run over .*\+checkpoint\.init_from=.*checkpoint\.save_dir=NEW",
        checkpoint__reset_optimizer=True,
    )
    os.rename(out / "checkpoint_last.pt", out / "checkpoint_best.pt")
    with pytest.raises(UserError, match=r"holds checkpoint_best\.pt of an earlier run and no checkpoint_last\.pt"):
        train(scaled_down(path, data, out))
    assert files(out) == {"checkpoint_best.pt"} and told() == []


def test_fresh_over_a_run_moves_it_aside(one, data, tmp_path, told):
    path, folder = one
    out = copied(folder, tmp_path / "run")
    shutil.copy(out / "checkpoint_last.pt", out / "checkpoint_1_1.pt")
    for number in (1, 2):
        train(scaled_down(path, data, out, checkpoint__start="fresh"))
        aside, line = told()
        assert aside.endswith(f"now lie in {out}/earlier_{number}")
        assert line.startswith("start: fresh at update 0")
        assert updates(out) == 2 and files(out) == {"checkpoint_last.pt"}
    assert files(out / "earlier_1") == {"checkpoint_last.pt", "checkpoint_1_1.pt"}
    assert_equal(last(out / "earlier_1"), last(folder))
    # a run from the weights of another can be started over, too
    source = str(folder / "checkpoint_last.pt")
    train(scaled_down(path, data, out, checkpoint__start="fresh", checkpoint__init_from=source))
    assert told()[1].startswith("start: init_from")
    with pytest.raises(UserError, match="is one of them; choose another save_dir"):
        more = {"checkpoint__start": "fresh", "checkpoint__init_from": str(out / "checkpoint_last.pt")}
        train(scaled_down(path, data, out, **more))


def test_restore_file_goes_on_in_its_own_folder_and_elsewhere(one, data, tmp_path, told):
    path, folder = one
    source = folder / "checkpoint_last.pt"
    train(scaled_down(path, data, tmp_path / "a", optimization__max_update=3, checkpoint__restore_file=str(source)))
    assert told()[0] == f"start: resume from {source} at update 2 of 3 (checkpoint.restore_file)"
    assert updates(tmp_path / "a") == 3
    out = copied(folder, tmp_path / "b")
    os.rename(out / "checkpoint_last.pt", out / "checkpoint_1_2.pt")
    more = {"checkpoint__restore_file": str(out / "checkpoint_1_2.pt")}
    train(scaled_down(path, data, out, optimization__max_update=3, **more))
    assert updates(out) == 3
    told()
    # fairseq's way to take weights alone
    more = {f"checkpoint__{name}": True for name in ("reset_optimizer", "reset_lr_scheduler", "reset_dataloader")}
    train(scaled_down(path, data, tmp_path / "c", checkpoint__restore_file=str(source), **more))
    line = only(told())
    assert line.startswith(f"start: init_from {source}, saved at update 2") and "schedules and data begin at" in line
    assert updates(tmp_path / "c") == 2
    # and weights with the place in the data
    more = {"checkpoint__reset_optimizer": True, "checkpoint__restore_file": str(source)}
    train(scaled_down(path, data, tmp_path / "d", **more))
    assert only(told()).endswith("begin at update 0, data goes on (checkpoint.reset_dataloader=false)")
    began, went_on = (last(tmp_path / name)["extra_state"]["train_iterator"] for name in "cd")
    assert _place(went_on) > _place(began) and updates(tmp_path / "d") == 2


def _place(iterator):
    return iterator["epoch"], iterator["iterations_in_epoch"]


def test_a_changed_configuration_is_told_when_resuming(one, data, tmp_path, told):
    path, folder = one
    out = copied(folder, tmp_path / "run")
    other = copied(data, tmp_path / "other")
    train(scaled_down(path, other, out, optimization__lr=[0.001], dataset__max_tokens=12_000))
    line = told()[1]
    assert f"task.data: {data} -> {other}" in line and "optimization.lr: [0.0005] -> [0.001]" in line
    assert "dataset.max_tokens: 24000 -> 12000" in line and "save_dir" not in line


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"start": "again"}, "start=again is none of auto, resume and fresh"),
        ({"start": "resume"}, r"start=resume and there is no .*checkpoint_last\.pt"),
        ({"start": "fresh", "restore_file": "x.pt"}, "start=fresh and checkpoint.restore_file contradict"),
        ({"start": "resume", "reset_optimizer": True}, "start=resume goes on exactly"),
        ({"init_from": "gone.pt"}, r"init_from=gone\.pt does not exist"),
        ({"init_from": "a.pt", "restore_file": "b.pt"}, r"checkpoint\.restore_file beside it means nothing"),
        ({"init_from": "a.pt", "reset_meters": True}, r"checkpoint\.reset_meters beside it means nothing"),
        ({"init_from": "a.pt", "finetune_from_model": "b.pt"}, "mean the same and differ"),
        ({"init_from": "a.pt", "init_teacher": "both"}, "init_teacher=both is neither file nor student"),
    ],
)
def test_what_cannot_be_is_one_line(data, tmp_path, more, match):
    path = ROOT / "examples" / FILES["1.0"]
    with pytest.raises(UserError, match=match) as caught:
        train(scaled_down(path, data, tmp_path, **{f"checkpoint__{key}": value for key, value in more.items()}))
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == set()


def test_weights_that_do_not_fit_name_the_settings(one, data, tmp_path):
    path, folder = one
    source = str(folder / "checkpoint_last.pt")
    for more, setting in (
        ({"model__conv_pos": 9}, r"model\.conv_pos: 95 -> 9"),
        ({"model__pos_conv_depth": 2}, r"model\.pos_conv_depth: 5 -> 2"),
        ({"model__encoder_layers": 3}, r"model\.encoder_layers: 2 -> 3"),
    ):
        with pytest.raises(UserError, match=f"is of another model .*its settings differ: {setting}"):
            train(scaled_down(path, data, tmp_path / "run", checkpoint__init_from=source, **more))
    version2 = ROOT / "examples" / FILES["2.0"]
    with pytest.raises(UserError, match="holds a data2vec_audio and this run trains a data2vec_multi"):
        train(scaled_down(version2, data, tmp_path / "run", checkpoint__init_from=source))


def test_a_checkpoint_without_its_optimizer_is_not_resumed(one, data, tmp_path):
    path, folder = one
    out = copied(folder, tmp_path / "run")
    state = read_checkpoint(out / "checkpoint_last.pt", mmap=False)  # of a file that is written over
    state["last_optimizer_state"] = None
    torch.save(state, out / "checkpoint_last.pt")
    with pytest.raises(UserError, match=r"holds no optimizer state.*\+checkpoint\.init_from="):
        train(scaled_down(path, data, out, optimization__max_update=3))
    train(scaled_down(path, data, tmp_path / "new", checkpoint__init_from=str(out / "checkpoint_last.pt")))


def test_text_of_another_vocabulary(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write_data(tmp_path / name, "text")
    dictionary = tmp_path / "there" / "dict.txt"
    dictionary.write_text(dictionary.read_text() + "another 1\n")
    train(scaled_down(TEXT, tmp_path / "here", tmp_path / "run"))
    source = str(tmp_path / "run" / "checkpoint_last.pt")
    with pytest.raises(UserError, match=r"checkpoint_last\.pt: .*another dictionary .*dict\.txt of training"):
        train(scaled_down(TEXT, tmp_path / "there", tmp_path / "new", checkpoint__init_from=source))
    train(scaled_down(TEXT, tmp_path / "here", tmp_path / "new", checkpoint__init_from=source))


def test_a_fine_tuned_model_goes_on_with_other_recordings(one, data, tmp_path, told):
    """Continued fine-tuning: the network and the output layer of the file."""
    _, folder = one
    first, second = tmp_path / "first", tmp_path / "second"
    train(scaled_down(CTC, data, first, folder / "checkpoint_last.pt"))
    told()
    more = {"checkpoint__init_from": str(first / "checkpoint_last.pt"), "optimization__lr": [0.0]}
    train(scaled_down(CTC, data, second, folder / "checkpoint_last.pt", **more))
    assert "it holds no teacher" in only(told())
    assert moved(last(first)["model"], last(second)["model"]) == set()


def test_weights_that_upstream_saved(data, tmp_path, told):
    """Upstream's own model writes the file; ours begins with its student and its teacher."""
    path, out, source = ROOT / "examples" / FILES["1.0"], tmp_path / "run", tmp_path / "upstream.pt"
    cfg = resolved(scaled_down(path, data, out, checkpoint__init_from=str(source), **STILL))
    module = upstream.load("data2vec_audio")
    known = module.Data2VecAudioConfig.__dataclass_fields__
    fields = {key: value for key, value in OmegaConf.to_container(cfg.model).items() if key in known}
    theirs = module.Data2VecAudioModel(module.Data2VecAudioConfig(**fields))
    theirs.set_num_updates(0)
    for value in theirs.ema.fp32_params.values():
        value.add_(1.0)
    history = {"num_updates": 400_000, "criterion_name": "ModelCriterion", "optimizer_name": "FairseqAdam"}
    state = {
        "cfg": {"model": {**fields, "_name": "data2vec_audio"}, "task": {"_name": "audio_pretraining", "data": "gone"}},
        "args": None,
        "model": theirs.state_dict(),
        "optimizer_history": [{**history, "lr_scheduler_state": {"best": None}}],
        "extra_state": {"train_iterator": {"epoch": 2}, "val_loss": None, "previous_training_time": 1e6},
        "task_state": {},
        "last_optimizer_state": None,
    }
    torch.save(state, source)
    train(scaled_down(path, data, out, checkpoint__init_from=str(source), **STILL))
    assert only(told()).startswith(f"start: init_from {source}, saved at update 400000: weights only (student and")
    found = last(out)["model"]
    assert moved(state["model"]["_ema"], found["_ema"]) == set()
    name = "encoder.layers.0.fc1.weight"
    assert torch.equal(found[name], state["model"][name])
    # nor are the hours of that run, which optimization.stop_time_hours counts, those of this one
    assert last(out)["extra_state"]["previous_training_time"] < 1e6


def _agree(rank: int, port: int, folder: str, save_dirs: list[str]) -> None:
    """What each of two processes is told about each folder; the second is shown a folder that is not there."""
    from d2v_plugin.fairseq_hooks import install
    from d2v_plugin.fairseq_hooks.resuming import agreed_start

    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    install()
    found = []
    for save_dir in save_dirs:
        checkpoint = {"save_dir": save_dir if rank == 0 else "gone", "restore_file": "checkpoint_last.pt"}
        trainer = SimpleNamespace(
            data_parallel_rank=rank,
            data_parallel_world_size=2,
            data_parallel_process_group=torch.distributed.group.WORLD,
            device=torch.device("cpu"),
            checkpoint_suffix="",
            cfg=OmegaConf.create({"checkpoint": checkpoint, "optimization": {"max_update": 4}}),
        )
        try:
            start = agreed_start(trainer)
            found.append((start.kind, start.path))
        except UserError as error:
            found.append(("refused", str(error)))
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_every_process_starts_as_the_first_decided(one, tmp_path):
    """A shared disk may show a file to one machine later than to another."""
    _, folder = one
    (tmp_path / "bad").mkdir()
    shutil.copy(folder / "checkpoint_last.pt", tmp_path / "bad" / "checkpoint_best.pt")
    save_dirs = [str(folder), str(tmp_path / "new"), str(tmp_path / "bad")]
    port = 31_000 + os.getpid() % 2000
    torch.multiprocessing.spawn(_agree, args=(port, str(tmp_path), save_dirs), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert first[:2] == [("resume", f"{folder}/checkpoint_last.pt"), ("fresh", None)]
    assert first[2][0] == "refused" and "holds checkpoint_best.pt" in first[2][1]


def test_the_words_on_the_command_line(data, tmp_path):
    """Hydra takes fields that are not in fairseq's schema with a plus sign."""
    words = [sys.executable, "-m", "fairseq_cli.hydra_train", "--config-dir", "examples/speech"]
    words += ["--config-name", "base_librispeech", f"task.data={data}", f"checkpoint.save_dir={tmp_path}"]
    words += ["distributed_training.distributed_world_size=1", "common.cpu=true", "common.fp16=false"]
    words += ["+checkpoint.start=resume", "+checkpoint.init_from=x.pt", "+checkpoint.init_teacher=student"]
    words += ["++model.encoder_layers=8", "++model.encoder_embed_dim=32", "++model.encoder_attention_heads=4"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    expected = f"d2v: error: checkpoint.start=resume and there is no {tmp_path}/checkpoint_last.pt"
    assert done.stderr.splitlines()[-1].startswith(expected), done.stderr
