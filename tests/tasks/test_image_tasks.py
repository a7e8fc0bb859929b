"""The image task: upstream's configuration, early errors, batches through fairseq's iterator, work on the device."""

import argparse
import ast
import dataclasses
from pathlib import Path

import fairseq
import numpy as np
import pytest
import torch
from fairseq import tasks
from fairseq.criterions import FairseqCriterion
from fairseq.criterions.model_criterion import ModelCriterion
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from image_corpus import picture, write_folder
from omegaconf import OmegaConf
from PIL import Image

import d2v_plugin.tasks.mae_image_pretraining  # noqa: F401
from d2v_plugin.errors import UserError

NAME = "mae_image_pretraining"
UPSTREAM = Path(fairseq.__file__).parent / "examples/data2vec/tasks"
MODEL = {
    "clone_batch": 2,
    "modalities": {
        "image": {
            "input_size": 16,
            "patch_size": 4,
            "mask_prob": 0.6,
            "mask_prob_adjust": 0.1,
            "mask_length": 2,
            "inverse_mask": True,
            "mask_dropout": 0.0,
        }
    },
}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def task_of(model=MODEL, dataset=None, **fields):
    fields = {"_name": NAME, "input_size": 16, "key": "source", **fields}
    root = {"common": {"seed": 1}, "model": model, "dataset": dataset or {"train_subset": "train"}, "task": fields}
    return tasks.setup_task(OmegaConf.create(root).task)


@pytest.fixture
def folder(tmp_path):
    names = [f"{split}/{label}/{n}.png" for split in ("train", "valid") for label in "ab" for n in range(3)]
    return str(write_folder(tmp_path, names, 40, 30))


def batches_of(task, split="train", epochs=1, **options):
    task.load_dataset(split)
    iterator = task.get_batch_iterator(task.dataset(split), seed=1, **{"max_sentences": 4, **options})
    found = []
    for _ in range(epochs):
        epoch = iterator.next_epoch_itr(shuffle=split == "train")
        found.append(list(epoch))
    if options.get("num_workers"):
        iterator.dataloader._iterator._shutdown_workers()
    return found


class Pixels(BaseFairseqModel):
    """Takes what data2vec_multi takes, has one weight, and keeps what it saw."""

    def __init__(self, input_size=16, patch_size=4, name="IMAGE"):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        shape = argparse.Namespace(input_size=input_size, patch_size=patch_size)
        self.modality_encoders = torch.nn.ModuleDict({name: torch.nn.Identity()})
        self.modality_encoders[name].modality_cfg = shape

    def forward(self, source, target=None, id=None, mode=None, precomputed_mask=None, masked_count=None):
        self.seen = {"source": source, "target": target}
        return source.mean() * self.weight

    def set_num_updates(self, updates):
        pass


class Mean(FairseqCriterion):
    def forward(self, model, sample):
        return model(**sample["net_input"]), 1, {}


def built(task, model, monkeypatch):
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: model)
    return task.build_model(argparse.Namespace())


def step(task, sample, model, training=True):
    """What the trainer calls; returns what the model saw."""
    if training:
        optimizer = argparse.Namespace(backward=lambda loss: loss.backward())
        task.train_step(sample=sample, model=model, criterion=Mean(task), optimizer=optimizer, update_num=0)
    else:
        task.valid_step(sample, model, Mean(task))
    return model.seen


def upstream_fields(file, config):
    """Names and defaults of an upstream dataclass, read without importing it: field -> source text."""
    tree = ast.parse((UPSTREAM / file).read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == config]
    return {node.target.id: ast.unparse(node.value) for node in body if isinstance(node, ast.AnnAssign)}


def default_of(field):
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


@pytest.mark.parametrize("config", ["MaeImagePretrainingConfig", "ImageMaskingConfig"])
def test_every_upstream_field_keeps_its_default(config):
    ours = getattr(d2v_plugin.tasks.mae_image_pretraining, config)
    fields = {field.name: default_of(field) for field in dataclasses.fields(ours)}
    theirs = upstream_fields("mae_image_pretraining.py", config)
    assert len(theirs) > 7
    for name, text in theirs.items():
        if name == "data":
            assert fields[name] == "???"
        elif text.startswith("II("):
            assert fields[name] == "${" + ast.literal_eval(text[3:-1]) + "}", name
        else:
            assert fields[name] == ast.literal_eval(text), name
    assert tasks.TASK_DATACLASS_REGISTRY[NAME].__name__ == "MaeImagePretrainingConfig"


def test_epochs_of_batches(folder):
    first, second = batches_of(task_of(data=folder), epochs=2)
    for epoch, batches in enumerate((first, second), 1):
        assert sorted(sum((batch["ids"] for batch in batches), [])) == list(range(6))
        assert all(batch["epoch"] == epoch and batch["net_input"].keys() == {"source"} for batch in batches)
    assert [batch["ids"] for batch in first] != [batch["ids"] for batch in second]


def test_same_batches_with_workers(folder):
    seen = {}
    for workers in (0, 2):
        task = task_of(data=folder, precompute_mask_config={})
        seen[workers] = sum(batches_of(task, epochs=2, num_workers=workers), [])
    assert len(seen[0]) == 4
    for a, b in zip(seen[0], seen[2], strict=True):
        assert a["ids"] == b["ids"]
        for key in ("source", "precomputed_mask"):
            assert torch.equal(a["net_input"][key], b["net_input"][key])


def test_ranks_see_what_one_process_would(folder):
    """Two shards together hold the samples of an epoch, each with the crop it has anyway."""
    ((*whole,),) = batches_of(task_of(data=folder), max_sentences=1)
    crops = {batch["ids"][0]: batch["net_input"]["source"] for batch in whole}
    for shard in (0, 1):
        ((*part,),) = batches_of(task_of(data=folder), max_sentences=1, num_shards=2, shard_id=shard)
        assert len(part) == 3
        for batch in part:
            assert torch.equal(crops.pop(batch["ids"][0]), batch["net_input"]["source"])
    assert not crops


def test_masks_take_the_models_settings(folder):
    ((batch,),) = batches_of(task_of(data=folder, precompute_mask_config={}), max_sentences=6)
    mask = batch["net_input"]["precomputed_mask"]
    assert mask.shape == (6 * 2, 16) and mask.sum(1).unique().tolist() == [16 - int(16 * (1 - 0.6))]
    task = task_of(data=folder, precompute_mask_config={"clone_batch": 3, "patch_size": 8, "mask_prob": 0.5})
    ((batch,),) = batches_of(task, max_sentences=6)
    assert batch["net_input"]["precomputed_mask"].shape == (6 * 3, 4)
    task = task_of({"clone_batch": 2}, data=folder, precompute_mask_config={})
    with pytest.raises(UserError, match="mask_config.patch_size is to be the model's, and this model has none"):
        task.load_dataset("train")


def test_what_the_model_takes_is_brought(folder, monkeypatch):
    task = task_of(data=folder, precompute_mask_config={})
    task.load_dataset("train")
    built(task, Pixels(), monkeypatch)
    batch = task.dataset("train").collater([task.dataset("train")[n] for n in (1, 4)])
    assert batch["net_input"]["id"].tolist() == [1, 4] and batch["net_input"]["masked_count"] == 10


def test_training_step_augments_on_the_device(folder):
    task, model = task_of(data=folder), Pixels()
    ((sample, _),) = batches_of(task)
    images = sample["net_input"]["source"].clone()
    seen = step(task, sample, model)
    assert torch.equal(sample["net_input"]["source"], images)  # fairseq may take the sample again
    plain = (images.float() / 255 - MEAN) / STD
    for row, ours in enumerate(seen["source"]):
        assert min(float((ours - other).abs().max()) for other in (plain[row], plain[row].flip(-1))) < 1e-5
    assert torch.equal(step(task, sample, model)["source"], seen["source"])
    assert seen["target"] is None and model.weight.grad is not None


def test_precision_is_the_models(folder):
    task, model = task_of(data=folder), Pixels().to(torch.bfloat16)
    ((sample, _),) = batches_of(task)
    assert step(task, sample, model)["source"].dtype == torch.bfloat16
    assert step(task, sample, model, training=False)["source"].dtype == torch.bfloat16


def test_validation_sees_the_middle_and_nothing_random(folder):
    task, model = task_of(data=folder, beit_transforms=True), Pixels()
    ((sample, _),) = batches_of(task, "valid")
    assert sample["ids"] == [0, 1, 2, 3]
    seen = step(task, sample, model, training=False)["source"]
    image = picture(6, 40, 30).resize((24, 18), Image.Resampling.BICUBIC).crop((4, 1, 20, 17))
    expected = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255 - MEAN) / STD
    assert (seen[0] - expected).abs().max() < 2.1 / 255 / 0.224
    # another name for the training split
    task = task_of(dataset={"train_subset": "valid"}, data=folder)
    task.load_dataset("valid")
    assert task.dataset("valid").training and task.dataset("valid").rule.random
    task.load_dataset("train")
    assert not task.dataset("train").training


@pytest.mark.parametrize("fields", [{"target_transform": True}, {"target_transform": True, "beit_transforms": True}])
def test_target_transform_gives_the_teacher_its_own_colours(folder, fields):
    task, model = task_of(data=folder, **fields), Pixels()
    ((sample, _),) = batches_of(task)
    seen = step(task, sample, model)
    assert seen["target"].shape == seen["source"].shape and not torch.allclose(seen["target"], seen["source"])
    ((sample, _),) = batches_of(task, "valid")
    seen = step(task, sample, model, training=False)
    assert torch.equal(seen["target"], seen["source"])


def test_transforms(folder):
    plain, beit, whole = (
        task_of(data=folder, **fields) for fields in ({}, {"beit_transforms": True}, {"no_transform": True})
    )
    assert (plain.augment.config.flip, plain.augment.config.jitter) == (0.5, 0.0)
    assert (beit.augment.config.flip, beit.augment.config.jitter) == (0.5, 0.4)
    assert (whole.augment.config.flip, whole.augment.config.jitter) == (0.0, 0.0)
    for task, scale in ((plain, 0.2), (beit, 0.08)):
        task.load_dataset("train")
        assert task.dataset("train").rule.scale == (scale, 1.0)
    whole.load_dataset("train")
    assert whole.dataset("train").rule.plain
    other = task_of(data=folder, normalization_mean=[0.5, 0.5, 0.5], normalization_std=[0.25, 0.5, 1.0])
    ((sample, _),) = batches_of(other, "valid")
    seen = step(other, sample, Pixels(), training=False)["source"]
    expected = (sample["net_input"]["source"].float() / 255 - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1)
    assert torch.allclose(seen, expected, atol=1e-6)


def test_subsample_and_several_folders(folder, tmp_path):
    kept = []
    for seed in (1, 1, 2):
        task = task_of(data=folder, subsample=0.5, seed=seed)
        task.load_dataset("train")
        dataset = task.dataset("train")
        kept.append([dataset.index.name(n) for n in range(len(dataset))])
    assert kept[0] == kept[1] != kept[2] and all(len(names) == 3 for names in kept)
    more = write_folder(tmp_path / "more", ["train/a/x.png"], 40, 30)
    task = task_of(multi_data=[folder, str(more)])
    task.load_dataset("train")
    assert len(task.dataset("train")) == 7
    task = task_of(multi_data=[folder], dataset_type="path")
    task.load_dataset("train")
    assert len(task.dataset("train")) == 13


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, "task.data is not set"),
        ({"data": ""}, "task.data is not set"),
        ({"data": "x", "input_size": 0}, "task.input_size must be positive"),
        ({"data": "x", "subsample": 0.0}, "task.subsample must be above 0"),
        ({"data": "x", "max_bad_files": -2}, "task.max_bad_files must be -1"),
        ({"data": "x", "max_image_pixels": 0}, "task.max_image_pixels must be positive"),
        ({"data": "x", "dataset_type": "zip"}, "task.dataset_type must be one of imagefolder, path, tar"),
        ({"data": "x", "normalization_mean": [0.5]}, "task.normalization_mean must be three numbers"),
        ({"data": "x", "normalization_std": [1, 0, 1]}, "task.normalization_std must be three positive numbers"),
    ],
)
def test_wrong_fields_are_refused_at_once(fields, part):
    with pytest.raises(UserError) as caught:
        task_of(**fields)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_picture_that_patches_do_not_fill(folder):
    task = task_of(data=folder, input_size=18, precompute_mask_config={})
    with pytest.raises(UserError, match="input_size=18 is not a multiple of patch_size=4; set task.input_size to 16"):
        task.load_dataset("train")


class TakesImgs(BaseFairseqModel):
    cfg = argparse.Namespace(input_size=32, patch_size=4)

    def forward(self, imgs, predictions_only=False):
        return imgs


class TakesAnything(BaseFairseqModel):
    def forward(self, **kwargs):
        return kwargs


@pytest.mark.parametrize(
    ("model", "fields", "part"),
    [
        (Pixels(name="AUDIO"), {}, "the task reads images and the model has AUDIO only"),
        (TakesImgs(), {}, "task.key=source, and the model takes imgs, predictions_only; set task.key=imgs"),
        (TakesImgs(), {"key": "imgs"}, "task.input_size=16 and model.input_size=32; make them the same"),
        (TakesImgs(), {"key": "imgs", "target_transform": True}, "task.target_transform makes an image of its own"),
        (Pixels(input_size=32), {}, "task.input_size=16 and model.modalities.image.input_size=32; make them"),
        (Pixels(patch_size=5), {}, "task.input_size=16 is not a multiple of patch_size=5"),
    ],
)
def test_a_model_that_does_not_match(monkeypatch, model, fields, part):
    with pytest.raises(UserError) as caught:
        built(task_of(data="x", **fields), model, monkeypatch)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("model", "masks", "part"),
    [
        (Pixels(), {"patch_size": 8}, "precompute_mask_config.patch_size=8 and the model's is 4; leave it out"),
        (Pixels(), {"clone_batch": 5}, "precompute_mask_config.clone_batch=5 and the model's is 2; leave it out"),
        (TakesImgs(), {}, "this model draws its masks itself; remove task.precompute_mask_config"),
    ],
)
def test_masks_that_do_not_match(monkeypatch, model, masks, part):
    model.cfg = argparse.Namespace(clone_batch=2, patch_size=4)
    key = "imgs" if isinstance(model, TakesImgs) else "source"
    with pytest.raises(UserError) as caught:
        built(task_of(data="x", key=key, precompute_mask_config=masks), model, monkeypatch)
    assert part in str(caught.value)


def test_models_that_match(monkeypatch):
    for fields in ({}, {"target_transform": True}):
        built(task_of(data="x", **fields), Pixels(), monkeypatch)
        built(task_of(data="x", **fields), TakesAnything(), monkeypatch)
    built(task_of(data="x", key="imgs", input_size=32), TakesImgs(), monkeypatch)
    # one that comes out of a checkpoint is for its own images
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: TakesImgs())
    task_of(data="x").build_model(argparse.Namespace(), from_checkpoint=True)


def test_missing_split_and_missing_folder(folder):
    with pytest.raises(UserError, match="has train, valid"):
        task_of(data=folder).load_dataset("test")
    with pytest.raises(UserError, match="this folder does not exist"):
        task_of(data=folder + "/nowhere").load_dataset("train")


def test_bad_pictures_are_reported_and_logged(folder, caplog):
    for name in ("train/a/0.png", "train/b/2.png"):
        Path(folder, name).write_bytes(b"")
    task = task_of(data=folder)
    batches_of(task)
    with metrics.aggregate() as logged:
        task.reduce_metrics([{"loss": 1.0, "ntokens": 1, "nsentences": 1, "sample_size": 1}], ModelCriterion(task))
    assert logged.get_smoothed_values()["bad_files"] == 2
    for _ in range(2):
        task.begin_epoch(1, None)
    summary = "train: 2 of 6 files were unusable and skipped (2 empty)"
    assert caplog.text.count(summary) == 1
    task.begin_valid_epoch(1, None)
    task.report_bad_files(only_news=False)  # what runs when training ends
    assert caplog.text.count(summary) == 2


def test_a_model_of_another_modality_is_named_before_it_is_built(folder):
    task = task_of(data=str(folder))
    with pytest.raises(UserError, match="model.supported_modality=TEXT and a task that serves images"):
        task.build_model(OmegaConf.create({"_name": "data2vec_multi", "supported_modality": "TEXT"}))
