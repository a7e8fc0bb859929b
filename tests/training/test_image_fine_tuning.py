"""Fine-tuning on real digits from each kind of checkpoint: it learns, scores, resumes, and is loaded again alone."""

import itertools
import json
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import upstream_images
from fairseq import checkpoint_utils
from tiny_training import ROOT, scaled_down, train, write_data
from training_state import flatten

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError

VISION = ROOT / "examples" / "vision"
EACH = {"train": 40, "valid": 7, "test": 5}  # digits of each class
LOGGERS = ("train_inner", "train", "valid", "test")
CHANCE = 10.0
UPDATES = 100
NEW, OLD = "mae_image_classification", "data2vec_image_classification"
# from -> the classifier; the first three have our keys and are trained here, the others upstream's
STARTS = {
    "base_imagenet_v2": NEW,
    "mae_base_imagenet": NEW,
    "base_imagenet": OLD,
    "upstream_multi": NEW,
    "upstream_mae": NEW,
    "upstream_vision": OLD,
}
SIZES = {
    "base_imagenet_v2": {"model__modalities__image__input_size": 24, "model__modalities__image__patch_size": 4},
    "mae_base_imagenet": {"model__input_size": 24, "model__patch_size": 4},
    "base_imagenet": {
        "model__image_size": 24,
        "model__patch_size": 4,
        "model__num_mask_patches": 20,
        "model__min_mask_patches_per_block": 4,
        "model__max_mask_patches_per_block": 16,
    },
}
# from weights that two updates, or none, have touched, all layers have to learn
LEARNING = {
    "model__layer_decay": 0.9,
    "model__num_classes": 10,
    "optimization__lr": [0.002],
    "task__crop": "whole",
    "task__input_size": 24,
    "dataset__batch_size": 32,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with a few of scikit-learn's digits."""
    folder = tmp_path_factory.mktemp("digits")
    script = runpy.run_path(str(VISION / "prepare_digits.py"))
    images, labels = script["load_digits"]()
    kept = np.concatenate([np.flatnonzero(labels == digit)[:70] for digit in range(10)])
    script["write_digits"](folder, images[kept], labels[kept])
    for split, count in EACH.items():
        for digit in (folder / split).iterdir():
            for image in sorted(digit.iterdir())[count:]:
                image.unlink()
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Gives a checkpoint of pre-training, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder / "checkpoint_last.pt"
            if name.startswith("upstream_"):
                state, _ = getattr(upstream_images, name.removeprefix("upstream_"))()
                torch.save(state, made[name])
            else:
                images = write_data(tmp_path_factory.mktemp("images"), "vision")
                cfg = scaled_down(VISION / f"{name}.yaml", images, folder, task__input_size=24, **SIZES[name])
                train(cfg)
        return made[name]

    return get


def run(digits, folder, pretrained, kind=NEW, updates=UPDATES, **more):
    """The recipe for digits; returns what it saved last."""
    more = {**LEARNING, "optimization__max_update": updates, "lr_scheduler__max_update": UPDATES, **more}
    if kind == OLD:
        more |= {"task___name": "image_classification", "model___name": OLD, "model__pool_all_patches": True}
    cfg = scaled_down(VISION / "finetune_digits.yaml", digits, folder, pretrained, **more)
    train(cfg)
    return read_checkpoint(folder / "checkpoint_last.pt")


@pytest.mark.parametrize("name", STARTS)
def test_learns_digits_and_is_loaded_without_what_it_was_made_from(digits, start, tmp_path, name):
    pretrained = tmp_path / "pretrained.pt"
    shutil.copy(start(name), pretrained)
    state = run(digits, tmp_path / "run", pretrained, STARTS[name])
    accuracy = float(state["extra_state"]["best"])
    assert accuracy > 3 * CHANCE, accuracy
    best = read_checkpoint(tmp_path / "run" / "checkpoint_best.pt")
    assert float(best["extra_state"]["val_loss"]) == accuracy

    pretrained.unlink()
    path = str(tmp_path / "run" / "checkpoint_last.pt")
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([path], {"data": str(digits)})
    assert all(torch.equal(state["model"][key], value) for key, value in model.state_dict().items())
    task.load_dataset("valid")
    criterion, dataset = task.build_criterion(cfg.criterion), task.dataset("valid")
    samples = [dataset.collater([dataset[n]]) for n in range(len(dataset))]
    logs = [task.valid_step(sample, model.eval(), criterion)[2] for sample in samples]
    right, seen = (sum(int(log[key]) for log in logs) for key in ("_correct1", "_classified"))
    assert seen == len(dataset) > 40 and round(100 * right / seen, 3) == float(state["extra_state"]["val_loss"])


def test_accuracies_are_logged_in_validation_alone(digits, start, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(digits, tmp_path, start("upstream_multi"), updates=4, dataset__valid_subset="valid,test")
    logged = [json.loads(record.message) for record in caplog.records if record.name in LOGGERS]
    images = {split: len(list(digits.glob(f"{split}/*/*.png"))) for split in EACH}
    for split in ("valid", "test"):
        (scores,) = [log for log in logged if f"{split}_loss" in log]
        first, five = float(scores[f"{split}_accuracy"]), float(scores[f"{split}_top5"])
        right = first * images[split] / 100
        assert 0 <= first <= five <= 100 and right == pytest.approx(round(right), abs=1e-3)
    assert not any("accuracy" in key for log in logged for key in log if not key.startswith(("valid", "test")))


def test_runs_agree_whatever_the_workers_and_a_resumed_one_with_them(digits, start, tmp_path):
    noise = {"task__auto_augment": "rand-m9-mstd0.5-inc1", "task__random_erase": 0.25, "task__crop": "random"}
    noise |= {"model__mixup": 0.8, "model__cutmix": 1.0, "model__drop_path_rate": 0.3, "model__encoder_dropout": 0.1}
    noise |= {"checkpoint__save_interval_updates": 3, "dataset__disable_validation": True}
    made = {}
    for name, more in {"whole": {}, "workers": {"dataset__num_workers": 2}}.items():
        made[name] = run(digits, tmp_path / name, start("upstream_multi"), updates=6, **noise, **more)
    run(digits, tmp_path / "resumed", start("upstream_multi"), updates=3, **noise)
    made["resumed"] = run(digits, tmp_path / "resumed", start("upstream_multi"), updates=6, **noise)
    whole = made.pop("whole")
    for state in made.values():
        for part in ("model", "last_optimizer_state"):
            ours, theirs = dict(flatten(state[part])), dict(flatten(whole[part]))
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_from_scratch_the_file_gives_the_shape(digits, start, tmp_path):
    state = run(digits, tmp_path, start("upstream_multi"), updates=2, model__no_pretrained_weights=True)
    name = "modality_encoders.IMAGE.local_encoder.proj.weight"
    assert not torch.allclose(state["model"][f"model.{name}"], read_checkpoint(start("upstream_multi"))["model"][name])


@pytest.fixture
def few(digits, tmp_path):
    """Three of the ten classes."""
    for split, digit in itertools.product(("train", "valid"), "012"):
        shutil.copytree(digits / split / digit, tmp_path / "few" / split / digit)
    return tmp_path / "few"


def test_other_classes_when_resuming(digits, few, start, tmp_path):
    run(digits, tmp_path / "run", start("upstream_multi"), updates=2)
    with pytest.raises(UserError, match="of another model .the checkpoint's head has 10 classes and") as caught:
        run(few, tmp_path / "run", start("upstream_multi"), updates=4, model__num_classes=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["upstream_multi", "upstream_vision"])
def test_a_head_of_another_size(digits, few, start, tmp_path, name):
    run(digits, tmp_path / "run", start(name), STARTS[name], updates=2)
    more = {"model__num_classes": 3, "checkpoint__finetune_from_model": str(tmp_path / "run" / "checkpoint_last.pt")}
    with pytest.raises(UserError, match="the checkpoint's head has 10 classes and model.num_classes=3") as caught:
        run(few, tmp_path / "again", start(name), STARTS[name], updates=4, **more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["base_imagenet_v2", "base_imagenet"])
def test_images_of_another_normalisation_than_in_pre_training(digits, start, tmp_path, name):
    more = {"task__normalization_std": [0.5, 0.5, 0.5]}
    with pytest.raises(UserError, match=r"normalization_std=\[0.5, 0.5, 0.5\] .* saw images with \[0.229,.*; set "):
        run(digits, tmp_path, start(name), STARTS[name], updates=1, **more)
    run(digits, tmp_path, start(name), STARTS[name], updates=1, model__no_pretrained_weights=True, **more)


def test_fairseq_validate_scores_a_checkpoint(digits, start, tmp_path):
    state = run(digits, tmp_path / "run", start("upstream_mae"))
    words = [sys.executable, "-m", "fairseq_cli.validate", str(digits), "--user-dir", "d2v_plugin", "--cpu"]
    words += ["--task", NEW, "--path", str(tmp_path / "run" / "checkpoint_last.pt"), "--valid-subset", "valid"]
    words += ["--batch-size", "16", "--num-workers", "0", "--log-format", "json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r'"valid_accuracy": "([0-9.]+)"', done.stdout + done.stderr)
    assert [float(value) for value in found] == [float(state["extra_state"]["val_loss"])]
