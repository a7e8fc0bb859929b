"""Pooled features of images, and the digits they are shown on."""

import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from image_corpus import write_folder
from omegaconf import OmegaConf
from PIL import Image
from tiny_multi import tiny
from tiny_training import ROOT

from d2v_plugin.data.images.source import find_images
from d2v_plugin.errors import UserError
from d2v_plugin.eval.image_features import ImageInput, depth, image_features, pixels, read_images
from d2v_plugin.eval.linear_probe import fit_linear_probe

SMALL = ImageInput(24, no_transform=True)


@pytest.fixture
def index(tmp_path):
    write_folder(tmp_path, [f"train/{label}/{n}.png" for label in "ab" for n in range(5)], 30, 26)
    return find_images([str(tmp_path)], "train")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny("IMAGE", every={"num_extra_tokens": 1}).eval()


def test_the_last_layer_is_the_models_output_averaged(index, model):
    features = image_features(model, index, SMALL, batch_size=4)
    assert list(features.layers) == [depth(model)] == [4]
    assert features.layers[4].shape == (10, 48) and features.layers[4].dtype == torch.float32
    assert features.labels.tolist() == index.labels.tolist() and features.positions.tolist() == list(range(10))
    source = torch.cat([images for _, images in read_images(index, SMALL)]).float() / 255
    mean, std = torch.tensor(SMALL.normalization_mean), torch.tensor(SMALL.normalization_std)
    source = (source - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        expected = model(source, mode="IMAGE", mask=False, features_only=True)["x"].mean(1)
    torch.testing.assert_close(features.layers[4], expected, rtol=1e-5, atol=1e-5)


def test_features_can_be_probed(index, model):
    features = image_features(model, index, SMALL)
    x = features.layers[4]
    assert fit_linear_probe(x, features.labels, x, features.labels).valid_accuracy == 1.0


def test_layers_in_between_and_no_hook_is_left(index, model):
    features = image_features(model, index, SMALL, layers=[0, 1, 3])
    assert list(features.layers) == [0, 1, 3]
    assert not torch.allclose(features.layers[0], features.layers[1])
    blocks = [*model.modality_encoders["IMAGE"].context_encoder.blocks, *model.blocks]
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)
    for wrong in ([5], [-1]):
        with pytest.raises(UserError, match="layers 0 to 4, got"):
            image_features(model, index, SMALL, layers=wrong)


def test_batches_do_not_matter(index, model):
    one = image_features(model, index, SMALL, batch_size=1).layers[4]
    torch.testing.assert_close(one, image_features(model, index, SMALL, batch_size=7).layers[4], rtol=1e-5, atol=1e-5)


def test_pictures_are_read_as_in_validation(index):
    (positions, images), *rest = read_images(index, ImageInput(24), batch_size=100)
    assert positions == list(range(10)) and not rest
    image = Image.open(index.entry(3).path).convert("RGB").resize((31, 27), Image.Resampling.BICUBIC)
    expected = np.asarray(image.crop((4, 2, 28, 26)), dtype=int)
    assert np.abs(images[3].permute(1, 2, 0).numpy() - expected).max() <= 2
    order = [position for positions, _ in read_images(index, SMALL, batch_size=3, threads=2) for position in positions]
    assert order == list(range(10))


def test_bad_pictures_are_left_out(index, model, caplog):
    for n in (0, 1, 2, 6):
        with open(index.entry(n).path, "wb") as file:
            file.write(b"no image")
    features = image_features(model, index, SMALL, batch_size=3)
    assert features.positions.tolist() == [3, 4, 5, 7, 8, 9] and features.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert caplog.text.count("not an image") == 4
    assert torch.equal(pixels(index, SMALL).positions, features.positions)


def test_nothing_readable(index, model):
    for n in range(10):
        with open(index.entry(n).path, "wb"):
            pass
    for call in (lambda: image_features(model, index, SMALL), lambda: pixels(index, SMALL)):
        with pytest.raises(UserError, match="none of its 10 images could be read"):
            call()


def test_raw_pixels(index):
    features = pixels(index, ImageInput(8, no_transform=True))
    image = Image.open(index.entry(2).path).resize((8, 8), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1).flatten().float()
    assert features.layers[0].shape == (10, 192) and torch.allclose(features.layers[0][2], expected)


def test_a_model_of_another_modality(index):
    with pytest.raises(UserError, match="no encoder for images, only AUDIO"):
        image_features(tiny("AUDIO"), index, SMALL)


def test_input_from_a_checkpoints_task():
    task = OmegaConf.create({"_name": "mae_image_pretraining", "input_size": 32, "normalization_std": [1, 1, 2]})
    assert ImageInput.of(task) == ImageInput(32, normalization_std=(1, 1, 2))


def test_fairseq_is_not_needed():
    names = ("knn", "linear_probe", "few_labels", "image_features")
    imports = ", ".join(f"d2v_plugin.eval.{name}" for name in names)
    code = f"import sys, {imports}; sys.exit('fairseq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the digits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "examples/vision/prepare_digits.py"))


def test_the_digits_as_folders(script, tmp_path, capsys):
    assert script["main"](["--dest", str(tmp_path / "digits")]) == 0
    assert capsys.readouterr().out.count("images in") == 3
    counts = {}
    for split in ("train", "valid", "test"):
        index = find_images([str(tmp_path / "digits")], split)
        assert index.classes == tuple("0123456789")
        assert np.bincount(index.labels).min() >= 10
        counts[split] = len(index)
    assert sum(counts.values()) == 1797 and 330 <= counts["test"] <= 390 and 150 <= counts["valid"] <= 210
    images, digits = script["load_digits"]()
    entry = index.entry(5)
    written, number = np.asarray(Image.open(entry.path)), int(entry.name[2:6])
    assert written.shape == (8, 8) and np.abs(written / 255 * 16 - images[number]).max() < 0.05
    assert index.labels[5] == digits[number]


def test_the_division_repeats_and_keeps_copies_together(script, tmp_path):
    images = np.random.default_rng(0).integers(0, 17, (60, 8, 8)).astype(float)
    images[30:] = images[:30]
    for _ in range(2):  # the second time over the first
        counts = script["write_digits"](tmp_path, images, np.arange(60) % 3)
        assert sum(counts.values()) == 60 == len(list(tmp_path.rglob("*.png")))
    split = {int(path.stem): path.parts[-3] for path in tmp_path.rglob("*.png")}
    assert all(split[n] == split[n + 30] for n in range(30))


def test_parts_with_few_labels(script, tmp_path, capsys):
    words = ["--dest", str(tmp_path), "--draws", "2", "--labels"]
    assert script["main"]([*words, "10", "30"]) == 0
    chosen = {}
    for name, each in (("train_10_1", 1), ("train_10_2", 1), ("train_30_1", 3), ("train_30_2", 3)):
        index = find_images([str(tmp_path)], name)
        assert np.bincount(index.labels).tolist() == [each] * 10
        chosen[name] = {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.png")}
        assert all((tmp_path / "train" / path).is_file() for path in chosen[name])
    assert chosen["train_10_1"] != chosen["train_10_2"] and chosen["train_30_1"] > chosen["train_10_1"]
    assert script["main"]([*words, "15"]) == 2
    assert "--labels 15: give multiples of 10 up to 1" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(script, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert script["main"](["--dest", str(tmp_path / "file")]) == 2
    assert "prepare_digits: error: " in capsys.readouterr().err
