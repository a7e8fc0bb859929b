"""The two tasks that classify images: upstream's configuration, labels, what is random, accuracies, early errors."""

import argparse
import ast
import dataclasses
from pathlib import Path

import fairseq
import numpy as np
import pytest
import torch
from fairseq import tasks
from fairseq.criterions.model_criterion import ModelCriterion
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from image_corpus import picture, png, write_folder, write_tar
from omegaconf import OmegaConf
from PIL import Image

import d2v_plugin.tasks.image_classification
import d2v_plugin.tasks.mae_image_classification  # noqa: F401
from d2v_plugin.data.images.mixing import Mixing
from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.image_head import result

UPSTREAM = Path(fairseq.__file__).parent / "examples/data2vec/tasks"
NAMES = ("mae_image_classification", "image_classification")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
PLAIN = {"auto_augment": "", "random_erase": 0.0, "horizontal_flip": 0.0}


def task_of(name=NAMES[0], common=None, train_subset="train", optimizer="d2v_adamw", **fields):
    common = {"seed": 1, "fp16": False, "fp16_no_flatten_grads": False, **(common or {})}
    root = {"common": common, "dataset": {"train_subset": train_subset}, "optimizer": {"_name": optimizer}}
    root["task"] = {"_name": name, "input_size": 16, **fields}
    return tasks.setup_task(OmegaConf.create(root).task)


def names(split, classes="ab", count=3):
    return [f"{split}/{label}/{n}.png" for label in classes for n in range(count)]


@pytest.fixture
def folder(tmp_path):
    return str(write_folder(tmp_path, names("train") + names("valid"), 40, 30))


def batches_of(task, split="train", epochs=1, **options):
    task.load_dataset(split)
    iterator = task.get_batch_iterator(task.dataset(split), seed=1, **{"max_sentences": 4, **options})
    found = [list(iterator.next_epoch_itr(shuffle=split == "train")) for _ in range(epochs)]
    if options.get("num_workers"):
        iterator.dataloader._iterator._shutdown_workers()
    return found


class Linear(BaseFairseqModel):
    """What the tasks ask of a model; keeps what it saw."""

    def __init__(self, classes=2, mixing=None, lr_scale=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(classes, 3))
        if lr_scale is not None:
            self.weight.optim_overrides = {"optimizer": {"lr_scale": lr_scale}}
        self.num_classes, self.mixing = classes, mixing
        self.cfg = argparse.Namespace(pretrained_model_args={"model": {"_name": "mae"}})

    def forward(self, imgs=None, labels=None, img=None, label=None):
        images, labels = (imgs, labels) if img is None else (img, label)
        self.seen = images, labels
        return result(images.mean((2, 3)) @ self.weight.T, labels, self.training, 0.1)


def built(task, model, monkeypatch):
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: model)
    return task.build_model(argparse.Namespace())


def step(task, sample, model, training=True):
    """What the trainer calls; returns what the model saw."""
    criterion = ModelCriterion(task, loss_weights={}, log_keys=["correct"])
    if training:
        optimizer = argparse.Namespace(backward=lambda loss: loss.backward())
        task.train_step(sample=sample, model=model, criterion=criterion, optimizer=optimizer, update_num=0)
    else:
        task.valid_step(sample, model, criterion)
    return model.seen


@pytest.mark.parametrize(("name", "file"), [(NAMES[0], NAMES[0]), (NAMES[1], "image_pretraining")])
def test_every_upstream_field_keeps_its_default(name, file):
    config = tasks.TASK_DATACLASS_REGISTRY[name]
    assert config.__name__ == {NAMES[0]: "MaeImageClassificationConfig", NAMES[1]: "ImageClassificationConfig"}[name]
    kept = {field.name: field for field in dataclasses.fields(config)}
    tree = ast.parse((UPSTREAM / f"{file}.py").read_text())
    (body,) = [n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name.endswith("Config")]
    theirs = {node.target.id: ast.unparse(node.value) for node in body if isinstance(node, ast.AnnAssign)}
    assert len(theirs) == 4
    for field, text in theirs.items():
        ours = kept[field]
        default = ours.default if ours.default_factory is dataclasses.MISSING else tuple(ours.default_factory())
        assert default == ("???" if field == "data" else ast.literal_eval(text)), field


# -- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "keys"), [(NAMES[0], {"imgs", "labels"}), (NAMES[1], {"img", "label"})])
def test_batches_hold_images_and_labels(folder, name, keys):
    first, second = batches_of(task_of(name, data=folder), epochs=2)
    for epoch, batches in enumerate((first, second), 1):
        assert sorted(sum((batch["ids"] for batch in batches), [])) == list(range(6))
        for batch in batches:
            assert batch["epoch"] == epoch and batch["net_input"].keys() == keys
            image, label = (batch["net_input"][key] for key in sorted(keys))
            assert image.dtype == torch.uint8 and image.shape[1:] == (3, 16, 16)
            assert label.tolist() == [n // 3 for n in batch["ids"]] and label.dtype == torch.int64
    assert [batch["ids"] for batch in first] != [batch["ids"] for batch in second]


def test_everything_random_is_the_same_for_any_number_of_workers(folder, monkeypatch):
    seen = {}
    for workers in (0, 2):
        task = task_of(data=folder)
        model = built(task, Linear(mixing=Mixing(2)), monkeypatch)
        samples = sum(batches_of(task, epochs=2, num_workers=workers), [])
        seen[workers] = [step(task, sample, model) for sample in samples]
    assert len(seen[0]) == 4
    for ours, theirs in zip(seen[0], seen[2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # another epoch, another crop, another mixture
    assert not torch.equal(seen[0][0][0], seen[0][2][0])


def test_a_sample_is_augmented_alike_in_any_batch(folder):
    task = task_of(data=folder)
    (batches,) = batches_of(task, max_sentences=6)
    whole = dict(zip(batches[0]["ids"], step(task, batches[0], Linear())[0], strict=True))
    (batches,) = batches_of(task_of(data=folder), max_sentences=1)
    for sample in batches:
        assert torch.equal(step(task, sample, Linear())[0][0], whole[sample["ids"][0]])


def test_each_step_of_augmentation_is_taken(folder):
    plain = task_of(data=folder, **PLAIN)
    ((sample, _),) = batches_of(plain)
    images = sample["net_input"]["imgs"].clone()
    expected = (images.float() / 255 - MEAN) / STD
    torch.testing.assert_close(step(plain, sample, Linear())[0], expected, rtol=0, atol=1e-6)
    for changed in ({"auto_augment": "rand-m9-mstd0.5-inc1"}, {"random_erase": 1.0}, {"horizontal_flip": 1.0}):
        found = step(task_of(data=folder, **{**PLAIN, **changed}), sample, Linear())[0]
        assert not torch.equal(found, expected), changed
        if "horizontal_flip" in changed:
            torch.testing.assert_close(found, expected.flip(-1))
    # fairseq may take the sample again
    assert torch.equal(sample["net_input"]["imgs"], images)


def test_defaults_are_the_recipes():
    for name in NAMES:
        config = task_of(name, data="x").augment.config
        assert (config.flip, config.jitter, config.erase.prob) == (0.5, 0.0, 0.25)
        policy = config.randaugment
        assert (policy.magnitude, policy.noise, policy.layers, policy.prob) == (9, 0.5, 2, 0.5)


def test_mixing_is_the_models(folder, monkeypatch):
    task = task_of(data=folder, **PLAIN)
    ((sample, _),) = batches_of(task)
    model = built(task, Linear(mixing=Mixing(2, mixup=0.8, cutmix=0.0)), monkeypatch)
    images, labels = step(task, sample, model)
    B = len(sample["ids"])
    assert labels.shape == (B, 2) and torch.allclose(labels.sum(1), torch.ones(B))
    share, _, _ = model.mixing.draw(1, 1, sample["ids"], 16, 16)
    plain = (sample["net_input"]["imgs"].float() / 255 - MEAN) / STD
    torch.testing.assert_close(images, plain.flip(0).lerp(plain, float(share[0])), rtol=0, atol=1e-5)
    # never in validation
    _, labels = step(task, sample, model.eval(), training=False)
    assert labels.tolist() == sample["net_input"]["labels"].tolist()


def test_precision_is_the_models(folder):
    task, model = task_of(data=folder), Linear().to(torch.bfloat16)
    ((sample, _),) = batches_of(task)
    assert step(task, sample, model)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "size", "shorter"),
    [
        (NAMES[0], 16, 18),
        (NAMES[0], 224, 256),
        (NAMES[0], 256, 256),
        (NAMES[1], 40, 45),
        (NAMES[1], 256, 292),
        (NAMES[1], 384, 384),
    ],
)
def test_validation_sees_the_middle(tmp_path, name, size, shorter):
    """Resize the shorter side, then cut the middle out, as torchvision does."""
    write_folder(tmp_path, ["valid/a/0.png"], 500, 400)
    task = task_of(name, data=str(tmp_path), input_size=size)
    ((sample,),) = batches_of(task, "valid")
    image = picture(0, 500, 400).resize((int(shorter * 500 / 400), shorter), Image.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    expected = np.asarray(image.crop((left, top, left + size, top + size)))
    found = next(value for value in sample["net_input"].values() if value.dim() == 4)[0].permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 3 and np.abs(found.astype(int) - expected).mean() < 0.6


def test_crops_of_training():
    for name, size, crop, expected in (
        (NAMES[0], 224, None, "random crop of 0.08 to 1 of the area at 224 x 224"),
        (NAMES[0], 32, None, "random crop of 0.08 to 1 of the area at 32 x 32"),
        (NAMES[1], 33, None, "random crop of 0.08 to 1 of the area at 33 x 33"),
        (NAMES[1], 32, None, "the whole image at 32 x 32, moved by up to 4 pixels"),
        (NAMES[0], 32, "shift", "the whole image at 32 x 32, moved by up to 4 pixels"),
        (NAMES[0], 32, "whole", "the whole image at 32 x 32"),
    ):
        assert str(task_of(name, data="x", input_size=size, crop=crop).crop_rule(training=True)) == expected
    for crop, expected in (("shift", "the whole image at 32 x 32"), (None, "centre crop at 32 x 32")):
        assert str(task_of(data="x", input_size=32, crop=crop).crop_rule(training=False)) == expected


def test_small_images_are_moved_as_padded_ones_are_cropped(tmp_path):
    """torchvision's RandomCrop with padding, on images of the input's size; each place comes up."""
    write_folder(tmp_path, ["train/a/0.png"], 32, 32)
    task = task_of(NAMES[1], data=str(tmp_path), input_size=32)
    task.load_dataset("train")
    dataset = task.dataset("train")
    padded = np.pad(np.asarray(picture(0, 32, 32)), ((4, 4), (4, 4), (0, 0)))
    places = {(y, x): padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    seen = set()
    for epoch in range(1, 60):
        dataset.set_epoch(epoch)
        found = dataset[0]["source"]
        seen |= {place for place, crop in places.items() if np.array_equal(crop, found)}
    assert len(seen) > 30 and {0, 8} <= {y for y, _ in seen} & {x for _, x in seen}


# -- accuracies ----------------------------------------------------------------------------------


def test_accuracies_are_of_all_batches_and_processes(folder, monkeypatch):
    """Batches of 4 and 2: a mean of means would be another number."""
    task = task_of(data=folder)
    model = built(task, Linear(classes=6), monkeypatch).eval()
    task.num_classes = None
    (samples,) = batches_of(task, "valid")
    criterion = ModelCriterion(task, loss_weights={}, log_keys=[])
    logs, right, first_five = [], 0, 0
    for sample in samples:
        logs.append(task.valid_step(sample, model, criterion)[2])
        images, labels = model.seen
        logits = images.mean((2, 3)) @ model.weight.T
        right += int((logits.argmax(1) == labels).sum())
        first_five += int((logits.argsort(1, descending=True)[:, :5] == labels[:, None]).sum())
    assert [log["sample_size"] for log in logs] == [4, 2]
    # what processes send one another: sums over keys, some with nothing in them
    summed = {key: sum(log[key] for log in logs) for key in logs[0]}
    empty = {key: 0 * value for key, value in summed.items()}
    for outputs in (logs, [summed], [summed, empty]):
        with metrics.aggregate() as logged:
            task.reduce_metrics(outputs, criterion)
        values = logged.get_smoothed_values()
        assert values["accuracy"] == pytest.approx(100 * right / 6, abs=5e-4)
        assert values["top5"] == pytest.approx(100 * first_five / 6, abs=5e-4)
    with metrics.aggregate() as logged:
        task.reduce_metrics([{"loss": 1.0, "ntokens": 1, "nsentences": 1, "sample_size": 1}], criterion)
    assert "accuracy" not in logged.get_smoothed_values()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_no_image_is_left_out(folder, split):
    """fairseq's batches of a multiple of 4 would be one of 4 images, and two would not be seen."""
    ((*batches,),) = batches_of(task_of(data=folder), split, max_sentences=5, required_batch_size_multiple=4)
    assert sorted(len(batch["ids"]) for batch in batches) == [2, 4]
    assert sorted(number for batch in batches for number in batch["ids"]) == list(range(6))


# -- labels --------------------------------------------------------------------------------------


def test_classes_keep_their_numbers_in_every_split(tmp_path):
    """Upstream would call the second class 0 where the first is missing."""
    write_folder(tmp_path, names("train", "abc") + names("valid", "bc") + names("test", "c"), 20, 20)
    task = task_of(data=str(tmp_path))
    for split, expected in (("valid", [1, 1, 1, 2, 2, 2]), ("test", [2, 2, 2])):
        task.load_dataset(split)
        assert task.dataset(split).labels.tolist() == expected
    task.load_dataset("train")
    # where the data of training is gone, the checkpoint says
    write_folder(tmp_path / "elsewhere", names("test", "c"), 20, 20)
    other = task_of(data=str(tmp_path / "elsewhere"))
    other.load_state_dict(task.state_dict())
    other.load_dataset("test")
    assert other.dataset("test").labels.tolist() == [2, 2, 2]


def test_shards_bring_numbers(tmp_path, monkeypatch):
    members = {}
    for n, label in enumerate((0, 2, 1)):
        members |= {f"{n}.png": png(n), f"{n}.cls": str(label).encode()}
    write_tar(tmp_path / "train-0.tar", members)
    task = task_of(data=str(tmp_path))
    task.load_dataset("train")
    assert task.dataset("train").labels.tolist() == [0, 2, 1]
    built(task, Linear(classes=2), monkeypatch)
    with pytest.raises(UserError, match="has labels up to 2, and the model's go from 0 to 1; set model.num_classes=3"):
        task.load_dataset("train")
    write_tar(tmp_path / "valid-0.tar", {"0.png": png(1)})
    with pytest.raises(UserError, match="valid-.*: no labels; images go into one folder a class"):
        task.load_dataset("valid")


def test_no_class_folders(tmp_path):
    write_folder(tmp_path, ["train/0.png"], 20, 20)
    with pytest.raises(UserError, match="train: no labels; images go into one folder a class, .*train/CLASS/IMAGE"):
        task_of(data=str(tmp_path)).load_dataset("train")


def test_a_class_that_training_lacks(tmp_path):
    write_folder(tmp_path, names("train", "ab") + names("valid", "abcdef"), 20, 20)
    with pytest.raises(UserError) as caught:
        task_of(data=str(tmp_path)).load_dataset("valid")
    assert "has classes that" in str(caught.value) and "lacks: c, d, e and 1 more; remove these" in str(caught.value)


def test_another_number_of_classes_than_the_model(folder, monkeypatch):
    task = task_of(data=folder)
    built(task, Linear(classes=1000), monkeypatch)
    for split in ("train", "valid"):
        with pytest.raises(UserError, match=r"train has 2 classes and the model 1000; set \+\+model.num_classes=2"):
            task.load_dataset(split)


def test_folders_and_shards_in_one_run(tmp_path):
    write_folder(tmp_path, names("train"), 20, 20)
    write_tar(tmp_path / "valid-0.tar", {"0.png": png(0), "0.cls": b"1"})
    with pytest.raises(UserError, match="has shards with numbers for classes, and .*train the other kind"):
        task_of(data=str(tmp_path)).load_dataset("valid")


def test_resuming_with_other_classes(folder, tmp_path):
    saved = task_of(data=folder)
    saved.load_dataset("train")
    write_folder(tmp_path / "other", names("train", "bc"), 20, 20)
    data_first, checkpoint_first = (task_of(data=str(tmp_path / "other")) for _ in range(2))
    data_first.load_dataset("train")
    expected = r"trained with other classes than those of .* \(2 and 2, a, c only in one\)"
    with pytest.raises(UserError, match=expected):
        data_first.check_state(saved.state_dict())
    checkpoint_first.load_state_dict(saved.state_dict())
    with pytest.raises(UserError, match=expected):
        checkpoint_first.load_dataset("train")
    same = task_of(data=folder)
    same.load_dataset("train")
    same.load_state_dict(saved.state_dict())


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"data": "???"}, "task.data is not set; give the folder that holds the splits"),
        ({"input_size": 0}, "task.input_size must be positive"),
        ({"dataset_type": "path"}, "task.dataset_type must be one of imagefolder, tar, got 'path'"),
        ({"crop": "centre"}, "task.crop must be one of random, shift, whole, got 'centre'"),
        ({"horizontal_flip": 1.5}, "task.horizontal_flip must be between 0 and 1"),
        ({"random_erase": -0.1}, "task.random_erase must be between 0 and 1"),
        ({"auto_augment": "rand-m9"}, "task.auto_augment='rand-m9' is not a policy that is known here; give rand-mM"),
        ({"auto_augment": "rand-m11-inc1"}, "is not a policy"),
        ({"auto_augment": "rand-m9-inc1-m8"}, "is not a policy"),
        ({"auto_augment": "augmix-m5-inc1"}, "is not a policy"),
        ({"max_bad_files": -2}, "task.max_bad_files must be -1"),
        ({"max_image_pixels": 0}, "task.max_image_pixels must be positive"),
        ({"normalization_std": [1, 1, 0]}, "task.normalization_std must be three positive numbers"),
        ({"normalization_mean": [1, 1]}, "task.normalization_mean must be three numbers"),
    ],
)
def test_wrong_fields_are_refused_at_once(fields, part):
    with pytest.raises(UserError) as caught:
        task_of(**{"data": "x", **fields})
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_policies():
    policy = task_of(data="x", auto_augment="rand-m5.5-n3-p0.25-inc1").augment.config.randaugment
    assert (policy.magnitude, policy.noise, policy.layers, policy.prob) == (5.5, 0, 3, 0.25)


def test_a_model_that_does_not_classify(monkeypatch):
    model = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="is for a model that classifies images, and Linear does not; set model._name="):
        built(task_of(data="x"), model, monkeypatch)


def test_rates_by_layer_that_no_optimiser_would_see(monkeypatch, caplog):
    model = Linear(lr_scale=0.5)
    with pytest.raises(UserError, match="fp16 makes one parameter of all; set common.fp16_no_flatten_grads=true"):
        built(task_of(data="x", common={"fp16": True}), model, monkeypatch)
    built(task_of(data="x", common={"fp16": True, "fp16_no_flatten_grads": True}), model, monkeypatch)
    built(task_of(data="x", optimizer="composite"), model, monkeypatch)
    built(task_of(data="x", common={"fp16": True}), Linear(), monkeypatch)
    assert "one rate" not in caplog.text
    built(task_of(data="x", optimizer="adam"), model, monkeypatch)
    assert "optimizer adam gives all layers one rate, in spite of model.layer_decay; d2v_adamw" in caplog.text


def test_bad_pictures_are_left_out_and_counted(folder):
    for name in ("train/a/0.png", "train/b/2.png"):
        Path(folder, name).write_bytes(b"")
    task = task_of(data=folder)
    (batches,) = batches_of(task, max_sentences=6)
    assert sorted(batches[0]["ids"]) == [1, 2, 3, 4]
    assert batches[0]["net_input"]["labels"].tolist() == [n // 3 for n in batches[0]["ids"]]
    assert task.dataset("train").bad_files.count() == 2


@pytest.mark.parametrize("below", [lambda fields: {"image": fields}, lambda fields: fields], ids=["several", "images"])
def test_the_normalisation_of_pre_training_is_compared(folder, below, monkeypatch):
    """A task of several modalities keeps it below image; a task that keeps none is taken as it is."""
    task, model = task_of(data=folder), Linear()
    for mean, std in (([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), (None, None)):
        kept = {"normalization_mean": mean, "normalization_std": std}
        model.cfg.pretrained_model_args = {"model": {"_name": "mae"}, "task": below(kept)}
        assert built(task, model, monkeypatch) is model
    model.cfg.pretrained_model_args["task"] = below({"normalization_mean": [0.5, 0.5, 0.5]})
    with pytest.raises(UserError, match=r"mean=\[0.485, .* saw images with \[0.5, 0.5, 0.5\]"):
        built(task, model, monkeypatch)
    model.cfg.no_pretrained_weights = True
    assert built(task, model, monkeypatch) is model
