"""Each of GLUE's tasks trains, scores and loads again; data that does not fit is refused in one line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_glue
import torch
from fairseq import checkpoint_utils, tasks
from fairseq_cli import validate
from tiny_training import ROOT, resolved, train

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.data.text.binary import TokenWriter
from d2v_plugin.data.text.glue import TASKS
from d2v_plugin.data.text.labelled import Sample, TextEncoder, write_split
from d2v_plugin.errors import UserError

GLUE = ROOT / "examples" / "text" / "glue"
LEARNING = {"optimization__lr": [0.003], "optimization__max_epoch": 0, "optimization__max_update": 80}
LEARNING |= {"dataset__batch_size": 16, "dataset__validate_interval": 10, "checkpoint__no_save": True}
LEARNING |= {"common__log_interval": 1000}


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return tiny_glue.write_all(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module", params=["ours", "upstream"])
def pretrained(request, glue, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    if request.param == "ours":
        return tiny_glue.pretrain(glue / "text", folder)
    tiny_glue.upstream_v2(glue / "text", folder / "upstream.pt")
    return folder / "upstream.pt"


@pytest.fixture(scope="module")
def ours(glue, tmp_path_factory):
    return tiny_glue.pretrain(glue / "text", tmp_path_factory.mktemp("ours"))


@pytest.fixture
def records(caplog):
    """Gives what fairseq logged as JSON of "train" or "valid", once something has run."""
    caplog.set_level("INFO")

    def get(name):
        return [json.loads(r.getMessage()) for r in caplog.records if r.name == name and r.getMessage()[0] == "{"]

    return get


@pytest.mark.parametrize("name", TASKS)
def test_trains_and_scores(name, glue, ours, tmp_path, records):
    train(tiny_glue.small_run(GLUE / f"{name}.yaml", glue, tmp_path, pretrained=ours, **LEARNING))
    metric, found = TASKS[name].metric, records("valid")
    assert len(found) > 2
    best = max(float(record[f"valid_{metric}"]) for record in found)
    # what is held out was seen in training, so that a network this small can learn it
    assert best > {"mnli": 60, "cola": 50, "sts_b": 50}.get(name, 75)
    for score in {"acc_and_f1": ("f1", "accuracy"), "pearson_and_spearman": ("pearson", "spearman")}.get(metric, ()):
        assert f"valid_{score}" in found[-1]
    if name == "mnli":
        assert float(records("valid1")[-1]["valid1_accuracy"]) > 60


@pytest.mark.parametrize("name", ["rte", "sts_b", "sst_2"])
def test_loads_without_pre_training_and_without_its_data(name, glue, pretrained, tmp_path):
    data, start = tmp_path / "data", tmp_path / "start.pt"
    shutil.copytree(glue / "bin" / name, data / "bin" / name)
    shutil.copyfile(pretrained, start)
    train(tiny_glue.small_run(GLUE / f"{name}.yaml", data, tmp_path / "run", pretrained=start))
    start.unlink()
    path = tmp_path / "run" / "checkpoint_last.pt"
    if name == "sts_b":
        scores = validated(path, data / "bin" / name)
        assert {"pearson", "spearman", "pearson_and_spearman"} <= scores.keys()
        assert np.isfinite(scores["loss"])
    shutil.rmtree(data)
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    assert len(task.dictionary) == tiny_glue.PIECES + 1
    assert cfg["model"]["pretrained_model_args"]["model"]["_name"] == "data2vec_multi"
    tokens = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    logits, _ = model.eval()(tokens, padding_mask=tokens == 1, classification_head_name="sentence_classification_head")
    assert logits.shape == (2, TASKS[name].classes is None or 2)
    assert not any("_ema" in key or "decoder" in key for key in read_checkpoint(path)["model"])


def test_1_0_loads_without_pre_training_and_without_its_data(glue, tmp_path):
    data, start = tmp_path / "data", tiny_glue.pretrain(glue / "text", tmp_path / "pretrained", tiny_glue.V1)
    shutil.copytree(glue / "bin" / "rte", data / "bin" / "rte")
    path = ROOT / "examples" / "text" / "glue_v1" / "rte.yaml"
    train(tiny_glue.small_run(path, data, tmp_path / "run", pretrained=start))
    start.unlink(), shutil.rmtree(data)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "run" / "checkpoint_last.pt")])
    assert task.label_dictionary.symbols[4:6] == ["entailment", "not_entailment"]
    tokens = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    logits, _ = model.eval()(tokens, classification_head_name="sentence_classification_head")
    assert logits.shape == (2, 2)


def validated(path: Path, data: Path) -> dict:
    """What ``fairseq-validate --path`` prints."""
    from fairseq import options

    parser = options.get_validation_parser()
    names = ["--task", "d2v_sentence_prediction", "--criterion", "d2v_sentence_prediction", "--cpu"]
    arguments = [str(data), *names, "--path", str(path), "--valid-subset", "valid", "--batch-size", "4"]
    printed = {}
    args = options.parse_args_and_arch(parser, arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate.progress_bar.SimpleProgressBar, "print", lambda self, stats, **_: printed.update(stats))
        args.log_format = "simple"
        validate.main(args)
    return printed


@pytest.mark.parametrize("split", ["train", "valid"])
def test_no_sample_is_left_out(split, glue, ours, tmp_path):
    """fairseq-validate asks for batches of a multiple of 8, and fairseq leaves out what is over."""
    cfg = resolved(tiny_glue.small_run(GLUE / "sts_b.yaml", glue, tmp_path, pretrained=ours))
    task = tasks.setup_task(cfg.task)
    task.load_dataset(split)
    dataset, found = task.dataset(split), []
    for batch in task.get_batch_iterator(dataset, max_sentences=16, required_batch_size_multiple=8).next_epoch_itr():
        assert len(batch["id"]) == len(batch["target"]) == batch["nsentences"] <= 16
        found += batch["id"].tolist()
    assert len(dataset) % 8
    assert sorted(found) == list(range(len(dataset)))


def test_fairseqs_own_task_and_criterion_drive_the_model(glue, pretrained, tmp_path, records):
    names = {"task___name": "sentence_prediction", "criterion___name": "sentence_prediction"}
    path = GLUE / "mrpc.yaml"
    train(tiny_glue.small_run(path, glue, tmp_path, pretrained=pretrained, **names))
    assert {"valid_accuracy", "valid_acc_and_f1", "valid_f1"} <= records("valid")[-1].keys()
    cfg = read_checkpoint(tmp_path / "checkpoint_last.pt")["cfg"]
    assert cfg["model"]["pretrained_model_args"] is not None


def test_random_weights_where_asked_for(glue, ours, tmp_path):
    path, found = GLUE / "rte.yaml", {}
    for random in (False, True):
        cfg = resolved(tiny_glue.small_run(path, glue, tmp_path, pretrained=ours, model__no_pretrained_weights=random))
        model = build(cfg)
        found[random] = model.state_dict()["model.modality_encoders.TEXT.local_encoder.embed_tokens.weight"]
    expected = read_checkpoint(ours)["model"]["modality_encoders.TEXT.local_encoder.embed_tokens.weight"]
    assert torch.equal(found[False], expected)
    assert not torch.equal(found[True], expected)


def build(cfg):
    return tasks.setup_task(cfg.task).build_model(cfg.model)


def test_data_of_fairseq_preprocess(glue, ours, tmp_path, records):
    """It numbers labels by how frequent they are, and fills dictionaries up to a multiple of eight."""
    shutil.copytree(glue / "bin" / "mrpc", tmp_path / "data" / "bin" / "mrpc")
    labels = tmp_path / "data" / "bin" / "mrpc" / "label" / "dict.txt"
    labels.write_text("1 14\n0 10\nmadeupword0000 0\nmadeupword0001 0\n")
    path = GLUE / "mrpc.yaml"
    train(tiny_glue.small_run(path, tmp_path / "data", tmp_path / "run", pretrained=ours, optimization__lr=[0.0]))
    turned = records("valid")[-1]
    assert int(read_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]) == 2
    train(tiny_glue.small_run(path, glue, tmp_path / "other", pretrained=ours, optimization__lr=[0.0]))
    plain = records("valid")[-1]
    # the other names turn F1 to the other class and leave the accuracy
    assert turned["valid_accuracy"] == plain["valid_accuracy"]
    assert turned["valid_f1"] != plain["valid_f1"]


# -- what is refused ---------------------------------------------------------------------------------


def refused(message, cfg):
    with pytest.raises(UserError, match=message) as caught:
        train(cfg)
    assert "\n" not in str(caught.value)


@pytest.fixture
def data(glue, tmp_path):
    """A copy of RTE that a test may break: ``<data>/bin/rte``."""
    shutil.copytree(glue / "bin" / "rte", tmp_path / "data" / "bin" / "rte")
    return tmp_path / "data"


@pytest.fixture
def encoder(glue):
    return TextEncoder.of_folder(glue / "text")


def rte(data, ours, tmp_path, **more):
    return tiny_glue.small_run(GLUE / "rte.yaml", data, tmp_path / "run", pretrained=ours, **more)


PAIR = ("The river froze.", "It was cold.")


def test_labels_missing(data, ours, tmp_path):
    for path in (data / "bin" / "rte" / "label").glob("valid.*"):
        path.unlink()
    refused("valid.bin and .idx do not exist, so this split has no labels", rte(data, ours, tmp_path))


def test_labels_of_the_wrong_count(data, ours, tmp_path, encoder):
    rows = [Sample(PAIR, "entailment")] * 5
    write_split(tmp_path / "other", "valid", rows, encoder, ("entailment", "not_entailment"))
    for path in (tmp_path / "other" / "label").glob("valid.*"):
        shutil.copy(path, data / "bin" / "rte" / "label")
    refused("unequal numbers of samples .input0/valid 8, input1/valid 8, label/valid 5", rte(data, ours, tmp_path))


@pytest.mark.parametrize(
    "tokens, message",
    [([6, 2] * 8, "sample 0 has the label <mask>, which is none of the 2 classes"), ([4] * 16, "has not one label")],
)
def test_labels_outside_the_classes(data, ours, tmp_path, tokens, message):
    writer = TokenWriter(data / "bin" / "rte" / "label" / "train", 7)
    writer.add(np.array(tokens), np.full(len(tokens) // 2, 2))
    writer.close()
    refused(message, rte(data, ours, tmp_path))


def test_another_number_of_classes(data, ours, tmp_path):
    refused(
        "labels entailment, not_entailment and task.num_classes=3; set it to 2",
        rte(data, ours, tmp_path, task__num_classes=3),
    )


@pytest.mark.parametrize("line", ["", "much", "0.5 0.4", "nan"])
def test_a_target_that_is_no_number(glue, ours, tmp_path, line):
    shutil.copytree(glue / "bin" / "sts_b", tmp_path / "data" / "bin" / "sts_b")
    path = tmp_path / "data" / "bin" / "sts_b" / "label" / "valid.label"
    path.write_text(path.read_text() + f"{line}\n")
    cfg = tiny_glue.small_run(GLUE / "sts_b.yaml", tmp_path / "data", tmp_path / "run", pretrained=ours)
    refused("valid.label:10: expected one number", cfg)


def test_text_of_another_dictionary(data, ours, tmp_path):
    for name in ("input0", "input1"):
        path = data / "bin" / "rte" / name / "dict.txt"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    refused("trained with another dictionary than task.data has .symbol 4", rte(data, ours, tmp_path))
    for name in ("input0", "input1"):
        path = data / "bin" / "rte" / name / "dict.txt"
        path.write_text(path.read_text() + "more 1\n")
    refused("dictionary of 202 symbols and .* was trained with 201", rte(data, ours, tmp_path))


def test_a_file_that_is_missing(data, ours, tmp_path):
    refused("nowhere/input0|has no folder input0", rte(tmp_path, ours, tmp_path, task__data=str(tmp_path / "nowhere")))
    refused("model.model_path is not set", rte(data, ours, tmp_path, model__model_path="???"))
    refused(
        "valid9.idx does not exist .there is: train, valid", rte(data, ours, tmp_path, dataset__valid_subset="valid9")
    )
    (data / "bin" / "rte" / "input1" / "valid.idx").unlink()
    refused("input1/valid.idx does not exist and input0 has this split", rte(data, ours, tmp_path))


def test_a_checkpoint_that_will_not_do(data, ours, tmp_path):
    train(rte(data, ours, tmp_path))
    last = tmp_path / "run" / "checkpoint_last.pt"
    cfg = rte(data, ours, tmp_path, model__model_path=str(last), checkpoint__save_dir=str(tmp_path / "again"))
    refused("holds a data2vec_text_classification model", cfg)
    # a head of another size
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(last)])
    model.register_classification_head("sentence_classification_head", num_classes=3)
    with pytest.raises(UserError, match="head sentence_classification_head has 2 classes and task.num_classes=3"):
        model.load_state_dict(read_checkpoint(last)["model"])


def test_more_positions_than_the_model_has(data, ours, tmp_path):
    refused("task.max_positions=65 and the model has 64", rte(data, ours, tmp_path, task__max_positions=65))


def test_samples_that_are_too_long(data, ours, tmp_path):
    cfg = rte(data, ours, tmp_path, task__max_positions=20)
    refused(r"\d samples are longer than task.max_positions=20 .*task.shorten_method=truncate", cfg)
    train(rte(data, ours, tmp_path, task__max_positions=20, task__shorten_method="truncate"))


@pytest.mark.parametrize(
    "more, message",
    [
        ({"criterion__report_acc_and_f1": True}, 'scores the class "1" of "0" and "1", and the labels are entail'),
        ({"criterion__report_pearson_and_spearman": True}, "scores numbers"),
        (
            {"criterion__regression_target": True, "task__num_classes": 1, "criterion__report_mcc": True},
            "scores classes",
        ),
        ({"criterion__regression_target": True}, "which predicts one number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_scores_that_do_not_go_with_the_labels(data, ours, tmp_path, more, message):
    refused(re.escape(message), rte(data, ours, tmp_path, **more))
