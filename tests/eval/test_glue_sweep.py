"""``d2v glue run``: the sweep trains, skips what ended, resumes what did not, and says what failed."""

import json
import sys
import textwrap

import pytest
import tiny_glue

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.cli import _glue_sweep
from d2v_plugin.cli.main import main
from d2v_plugin.data.text.glue import TASKS
from d2v_plugin.errors import UserError
from d2v_plugin.eval.glue_table import read_results

LINE = "[2026-01-01 00:00:00,000][{}][INFO] - {}"


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return tiny_glue.write_all(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def pretrained(glue, tmp_path_factory):
    return tiny_glue.pretrain(glue / "text", tmp_path_factory.mktemp("pretrained"))


@pytest.fixture(scope="module")
def pretrained_v1(glue, tmp_path_factory):
    return tiny_glue.pretrain(glue / "text", tmp_path_factory.mktemp("pretrained"), tiny_glue.V1)


def words(glue, model, out, *more):
    return ["glue", "run", str(model), "--data", str(glue / "bin"), "--out", str(out), *more]


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_from_its_checkpoint_to_the_table(version, glue, pretrained, pretrained_v1, tmp_path, capfd):
    out, model = tmp_path / "it's, here", pretrained if version == 2 else pretrained_v1
    short = ["--set", "optimization.max_update=3", "lr_scheduler.warmup_updates=1"]
    command = words(glue, model, out, "--tasks", "mnli", "--lrs", "1e-3", *short)
    assert main(command) == 0
    folder = out / "mnli" / "lr1e-3_seed1"
    assert sorted(path.name for path in folder.glob("*.pt")) == ["checkpoint_best.pt"]
    (result,) = read_results(out)
    assert (result["task"], result["lr"], result["seed"]) == ("mnli", "1e-3", 1)
    best = read_checkpoint(folder / "checkpoint_best.pt")
    assert best["optimizer_history"][-1]["num_updates"] == result["update"]
    assert best["extra_state"]["best"] == result["scores"]["accuracy"]
    assert {"accuracy", "mismatched_accuracy"} <= result["scores"].keys()
    assert "MNLI" in capfd.readouterr().out
    assert main(command) == 0
    assert "1 runs, 1 of them ended before" in capfd.readouterr().out
    assert main(["glue", "table", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["tasks"]["mnli"]["runs"] == 1


def sweep(glue, pretrained, tmp_path, **more):
    settings = {"tasks": [TASKS["rte"], TASKS["mrpc"]], "rates": ["1e-5", "2e-5"], "seeds": [1, 2], **more}
    return _glue_sweep.Sweep(pretrained, glue / "bin", tmp_path / "out", **settings)


@pytest.fixture
def pretended(monkeypatch):
    """Replaces training by a few lines of Python, given as text; ``{rate}`` and ``{folder}`` stand for the run's."""

    def pretend(code):
        code = f"import json, sys\nLINE = {LINE!r}\n" + textwrap.dedent(code)

        def command(self, run):
            return [sys.executable, "-c", code, run.rate, str(run.seed), str(run.folder), run.task.metric]

        monkeypatch.setattr(_glue_sweep.Sweep, "command", command)

    return pretend


TRAINS = """
    rate, seed, folder, metric = sys.argv[1:]
    for update, score in ((1, 50 + 1e6 * float(rate)), (2, 40)):
        print(LINE.format("train_inner", json.dumps({"num_updates": str(update)})))
        values = {"valid_num_updates": str(update), "valid_accuracy": str(score), "valid_" + metric: str(score)}
        print(LINE.format("valid", json.dumps(values)))
    open(folder + "/checkpoint_last.pt", "w").close()
"""


def test_every_rate_and_seed_of_every_task(glue, pretrained, tmp_path, pretended, capsys):
    pretended(TRAINS)
    assert sweep(glue, pretrained, tmp_path).run(jobs=3) == 0
    results = read_results(tmp_path / "out")
    assert {(r["task"], r["lr"], r["seed"]) for r in results} == {
        (task, rate, seed) for task in ("rte", "mrpc") for rate in ("1e-5", "2e-5") for seed in (1, 2)
    }
    assert {(r["lr"], r["update"], r["scores"]["accuracy"]) for r in results} == {("1e-5", 1, 60), ("2e-5", 1, 70)}
    assert not list((tmp_path / "out").rglob("checkpoint_last.pt"))
    assert "8 runs, 0 of them ended before" in capsys.readouterr().out


def test_without_rates_those_of_the_papers_are_swept(glue, pretrained, pretrained_v1, tmp_path):
    made = [sweep(glue, path, tmp_path / path.parent.name, rates=None) for path in (pretrained_v1, pretrained)]
    found = [list(dict.fromkeys(run.rate for run in each.runs)) for each in made]
    assert found == [["1e-5", "2e-5", "3e-5", "4e-5"], ["1e-5", "2e-5", "4e-5", "6e-5"]]


def test_what_ended_is_kept_and_what_failed_is_told(glue, pretrained, tmp_path, pretended, capsys):
    pretended("if sys.argv[1] == '2e-5': sys.exit('d2v: error: out of luck; try again')\n" + textwrap.dedent(TRAINS))
    assert sweep(glue, pretrained, tmp_path, seeds=[1]).run(jobs=1) == 2
    assert "rte rate 2e-5 seed 1: failed, exit code 1; d2v: error: out of luck; try again" in capsys.readouterr().out
    assert len(read_results(tmp_path / "out")) == 2
    pretended(TRAINS)
    assert sweep(glue, pretrained, tmp_path, seeds=[1]).run(jobs=1) == 0
    assert "4 runs, 2 of them ended before" in capsys.readouterr().out
    assert len(read_results(tmp_path / "out")) == 4


def test_what_is_refused_before_it_begins_is_told_once_a_task(glue, pretrained, tmp_path, pretended, capsys):
    pretended("sys.exit('d2v: error: another dictionary; change it')")
    assert sweep(glue, pretrained, tmp_path).run(jobs=1) == 8
    shown = capsys.readouterr().out
    assert shown.count("another dictionary") == 2 and "rte: its other runs would end alike" in shown


def test_a_setting_that_is_not_there_is_named(glue, pretrained, tmp_path, pretended, capsys):
    pretended("print('Could not override x.y.'); sys.exit('Set the environment variable HYDRA_FULL_ERROR=1')")
    assert sweep(glue, pretrained, tmp_path, tasks=[TASKS["rte"]], rates=["1e-5"], seeds=[1]).run(jobs=1) == 1
    assert "failed, exit code 1; Could not override x.y." in capsys.readouterr().out


def test_scores_from_before_an_interruption_count(glue, pretrained, tmp_path, pretended):
    one = {"tasks": [TASKS["rte"]], "rates": ["1e-5"], "seeds": [1]}
    folder = tmp_path / "out" / "rte" / "lr1e-5_seed1"
    folder.mkdir(parents=True)
    better = {"valid_num_updates": "1", "valid_accuracy": "80"}
    (folder / "train.log").write_text(LINE.format("valid", json.dumps(better)) + '\n[x][valid][INFO] - {"cut}\n')
    pretended("print(LINE.format('valid', json.dumps({'valid_num_updates': '2', 'valid_accuracy': '70'})))")
    assert sweep(glue, pretrained, tmp_path, **one).run(jobs=1) == 0
    assert [(r["update"], r["scores"]["accuracy"]) for r in read_results(tmp_path / "out")] == [(1, 80.0)]


def test_a_run_that_scores_nothing_failed(glue, pretrained, tmp_path, pretended):
    pretended("print('nothing')")
    assert sweep(glue, pretrained, tmp_path, rates=["1e-5"], seeds=[1]).run(jobs=2) == 2
    with pytest.raises(UserError, match="no run has ended here"):
        read_results(tmp_path / "out")


def test_the_command_line_of_each_version(glue, pretrained, pretrained_v1, tmp_path):
    for model, folder, start in (
        (pretrained, "glue", "model.model_path"),
        (pretrained_v1, "glue_v1", "checkpoint.finetune_from_model"),
    ):
        made = sweep(glue, model, tmp_path / folder, settings=["dataset.batch_size=4"])
        command = made.command(made.runs[0])
        assert command[command.index("--config-dir") + 1].endswith(f"examples/text/{folder}")
        assert f"{start}='{model}'" in command
        assert "task.max_positions=64" in command and "optimization.lr=[1e-5]" in command
        assert "++common.seed=1" in command and "dataset.batch_size=4" in command
    assert "model.transformer.encoder.layers=2" in command


def test_what_is_refused_before_anything_runs(glue, pretrained, tmp_path, capsys):
    for more, message in (
        ({"rates": ["fast"]}, "--lrs takes learning rates above 0 and below 1, got fast"),
        ({"rates": ["20"]}, "got 20"),
        ({"settings": ["dataset.batch_size"]}, "--set takes KEY=VALUE"),
        ({"config_dir": tmp_path}, "has no rte.yaml"),
    ):
        with pytest.raises(UserError, match=message):
            sweep(glue, pretrained, tmp_path, **more)
    with pytest.raises(UserError, match="rte: no prepared data; write it with `d2v glue prepare`"):
        _glue_sweep.Sweep(pretrained, tmp_path, tmp_path / "out", [TASKS["rte"]], ["1e-5"], [1])
    assert not (tmp_path / "out").exists()
    sweep(glue, pretrained, tmp_path)
    with pytest.raises(UserError, match="holds runs with settings .*choose another --out"):
        sweep(glue, pretrained, tmp_path, settings=["dataset.batch_size=4"])
    assert main(words(glue, pretrained, tmp_path / "other", "--jobs", "0")) == 2
    assert main(words(glue, tmp_path / "none.pt", tmp_path / "other")) == 2
    errors = capsys.readouterr().err
    assert "--jobs must be at least 1" in errors and "no checkpoint at" in errors


def test_a_checkpoint_of_another_model(glue, tmp_path):
    import torch

    torch.save({"cfg": {"model": {"_name": "data2vec_audio"}}, "model": {}}, tmp_path / "speech.pt")
    with pytest.raises(UserError, match="holds a data2vec_audio model"):
        sweep(glue, tmp_path / "speech.pt", tmp_path)
    cfg = {"model": {"_name": "data2vec_multi", "supported_modality": "IMAGE"}}
    torch.save({"cfg": cfg, "model": {}}, tmp_path / "images.pt")
    with pytest.raises(UserError, match="was trained on IMAGE; this needs a model of TEXT"):
        sweep(glue, tmp_path / "images.pt", tmp_path)
