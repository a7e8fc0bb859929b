"""The task of data2vec 1.0 for images: upstream's fields, which files it finds, masks of the model, and a step."""

import argparse
import ast
import dataclasses
from pathlib import Path

import fairseq
import pytest
import torch
from fairseq import tasks
from fairseq.criterions.model_criterion import ModelCriterion
from fairseq.logging import metrics
from image_corpus import png, write_folder, write_tar
from omegaconf import OmegaConf
from tiny_multi import build as build_multi
from tiny_multi import root_config
from tiny_vision import build

import d2v_plugin.tasks.image_pretraining
import d2v_plugin.tasks.mae_image_pretraining  # noqa: F401
from d2v_plugin.criterions.d2v_regression import D2vRegressionCriterion
from d2v_plugin.data.images.source import find_unlabelled
from d2v_plugin.errors import UserError
from d2v_plugin.tasks.image_pretraining import ImagePretrainingConfig

UPSTREAM = Path(fairseq.__file__).parent / "examples/data2vec/tasks/image_pretraining.py"


def task_of(name="image_pretraining", **fields):
    fields = {"_name": name, "input_size": 24, **fields}
    root = {"common": {"seed": 1}, "dataset": {"train_subset": "train"}, "task": fields}
    return tasks.setup_task(OmegaConf.create(root).task)


@pytest.fixture
def folder(tmp_path):
    names = [f"{split}/{label}/{n}.png" for split in ("train", "valid") for label in "ab" for n in range(3)]
    return str(write_folder(tmp_path, names, 40, 30))


def fitted(task, model, monkeypatch):
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: model)
    return task.build_model(argparse.Namespace())


def batches_of(task, split="train", **options):
    task.load_dataset(split)
    iterator = task.get_batch_iterator(task.dataset(split), seed=1, **{"max_sentences": 4, **options})
    found = list(iterator.next_epoch_itr(shuffle=split == "train"))
    if options.get("num_workers"):
        iterator.dataloader._iterator._shutdown_workers()
    return found


def test_every_upstream_field_keeps_its_default():
    (body,) = [
        node.body
        for node in ast.parse(UPSTREAM.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "ImagePretrainingConfig"
    ]
    theirs = {node.target.id: ast.unparse(node.value) for node in body if isinstance(node, ast.AnnAssign)}
    ours = {field.name: field for field in dataclasses.fields(ImagePretrainingConfig)}
    assert set(theirs) == {"data", "input_size", "normalization_mean", "normalization_std"}
    for name, text in theirs.items():
        field = ours[name]
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default
        expected = "???" if name == "data" else ast.literal_eval(text)
        assert (list(default) if name.startswith("norm") else default) == (
            list(expected) if name.startswith("norm") else expected
        )
    assert tasks.TASK_DATACLASS_REGISTRY["image_pretraining"].__name__ == "ImagePretrainingConfig"


# -- which files ------------------------------------------------------------------------------------


def names(index):
    return [index.name(n) for n in range(len(index))]


def test_images_lie_at_any_depth_below_the_split(tmp_path):
    write_folder(tmp_path, ["train/x.png", "train/a/y.png", "train/a/b/z.png", "valid/v.png"])
    found = names(find_unlabelled([str(tmp_path)], "train"))
    assert [Path(name).name for name in found] == ["x.png", "y.png", "z.png"]


def test_without_the_split_everything_is_used_and_said_so(tmp_path, caplog):
    write_folder(tmp_path, ["x.png", "a/y.png", "notes.txt"])
    assert len(find_unlabelled([str(tmp_path)], "train")) == 2
    assert f"{tmp_path} has no 'train'; every image below it is used" in caplog.text


def test_shards_of_the_split(tmp_path):
    write_tar(tmp_path / "train-000.tar", {"x.png": png(1), "y.png": png(2)})
    assert len(find_unlabelled([str(tmp_path)], "train")) == 2
    write_tar(tmp_path / "more" / "train" / "0.tar", {"z.png": png(3)})
    assert len(find_unlabelled([str(tmp_path), str(tmp_path / "more")], "train")) == 3


def test_several_folders(tmp_path):
    for name, count in (("one", 2), ("two", 3)):
        write_folder(tmp_path / name, [f"train/{n}.png" for n in range(count)])
    task = task_of(multi_data=[str(tmp_path / "one"), str(tmp_path / "two")])
    task.load_dataset("train")
    assert len(task.dataset("train")) == 5


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="this folder does not exist"):
        find_unlabelled([str(tmp_path / "nowhere")], "train")
    with pytest.raises(UserError, match="no image in it or below"):
        find_unlabelled([str(tmp_path)], "train")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, "task.data is not set"),
        ({"data": "x", "input_size": 0}, "task.input_size must be positive"),
        ({"data": "x", "max_bad_files": -2}, "task.max_bad_files must be -1"),
        ({"data": "x", "normalization_std": [1, 0, 1]}, "task.normalization_std must be three positive numbers"),
    ],
)
def test_wrong_fields_are_refused_at_once(fields, part):
    with pytest.raises(UserError) as caught:
        task_of(**fields)
    assert part in str(caught.value) and "\n" not in str(caught.value)


# -- crops, colours, masks --------------------------------------------------------------------------


def test_crops_and_colours_are_those_of_beit(folder):
    task = task_of(data=folder)
    config = task.augment.config
    assert (config.flip, config.jitter, config.jitter_target) == (0.5, 0.4, False)
    task.load_dataset("train")
    rule = task.dataset("train").rule
    assert rule.random and rule.scale == (0.08, 1.0) and rule.size == 24
    task.load_dataset("valid")
    assert not task.dataset("valid").rule.random


@pytest.mark.parametrize("name", ["image_pretraining", "mae_image_pretraining"])
def test_masks_of_the_model_come_with_the_batch(folder, monkeypatch, name):
    task = task_of(name, data=folder, **({"key": "img"} if name.startswith("mae") else {}))
    task.load_dataset("train")
    model = fitted(task, build(), monkeypatch)
    batches = batches_of(task)
    for batch in batches:
        found = batch["net_input"]
        assert found.keys() == {"img", "mask_indices", "masked_rows"}
        mask = found["mask_indices"]
        assert mask.shape == (len(batch["ids"]), 36) and mask.dtype == torch.bool
        assert torch.equal(found["masked_rows"], mask.flatten().nonzero().squeeze(1))
        assert 0 < mask.sum(1).max() <= model.cfg.num_mask_patches
    # a function of the sample: alone and in a batch, before and after the dataset is made
    alone = task.dataset("train").collater([task.dataset("train")[batches[0]["ids"][1]]])
    assert torch.equal(alone["net_input"]["mask_indices"][0], batches[0]["net_input"]["mask_indices"][1])
    task.dataset("train").set_epoch(2)
    again = task.dataset("train").collater([task.dataset("train")[batches[0]["ids"][1]]])
    assert not torch.equal(again["net_input"]["mask_indices"], alone["net_input"]["mask_indices"])


def test_same_batches_with_workers(folder, monkeypatch):
    seen = []
    for workers in (0, 2):
        task = task_of(data=folder)
        fitted(task, build(), monkeypatch)
        seen.append(batches_of(task, num_workers=workers))
    assert len(seen[0]) == 2
    for a, b in zip(*seen, strict=True):
        assert a["ids"] == b["ids"]
        for key in ("img", "mask_indices", "masked_rows"):
            assert torch.equal(a["net_input"][key], b["net_input"][key])


def test_a_step_and_validation(folder, monkeypatch):
    task = task_of(data=folder)
    model = fitted(task, build(), monkeypatch)
    model.set_num_updates(0)
    criterion = D2vRegressionCriterion(task)
    optimizer = argparse.Namespace(backward=lambda loss: loss.backward())
    batch = batches_of(task)[0]
    images = batch["net_input"]["img"].clone()
    loss, size, _ = task.train_step(batch, model, criterion, optimizer, update_num=0)
    assert size == len(batch["net_input"]["masked_rows"]) and loss.isfinite()
    assert torch.equal(batch["net_input"]["img"], images) and images.dtype == torch.uint8
    losses = [task.valid_step(batches_of(task, "valid")[0], model.eval(), criterion)[0] for _ in range(2)]
    assert losses[0] == losses[1]


def test_bad_pictures_are_left_out_and_logged(folder):
    for name in ("train/a/0.png", "train/b/2.png"):
        Path(folder, name).write_bytes(b"")
    task = task_of(data=folder)
    assert sorted(sum((batch["ids"] for batch in batches_of(task)), [])) == [1, 2, 3, 4]
    with metrics.aggregate() as logged:
        task.reduce_metrics([{"loss": 1.0, "ntokens": 1, "nsentences": 1, "sample_size": 1}], ModelCriterion(task))
    assert logged.get_smoothed_values()["bad_files"] == 2


# -- models that do not match -----------------------------------------------------------------------


def test_a_model_of_another_size(monkeypatch):
    with pytest.raises(UserError, match="task.input_size=32 and model.image_size=24; make them the same"):
        fitted(task_of(data="x", input_size=32), build(), monkeypatch)


def test_a_model_for_the_other_task(monkeypatch):
    with pytest.raises(UserError, match="task image_pretraining is for model data2vec_vision.*mae_image_pretraining"):
        fitted(task_of(data="x"), build_multi(root_config("IMAGE")), monkeypatch)
    with pytest.raises(UserError, match="this model draws its masks itself; remove task.precompute_mask_config"):
        task = task_of(
            "mae_image_pretraining",
            data="x",
            key="img",
            precompute_mask_config={
                "patch_size": 4,
                "mask_prob": 0.5,
                "mask_prob_adjust": 0.0,
                "mask_length": 2,
                "inverse_mask": False,
                "mask_dropout": 0.0,
                "clone_batch": 1,
            },
        )
        fitted(task, build(), monkeypatch)
