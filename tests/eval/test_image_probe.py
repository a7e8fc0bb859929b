"""Probes of image features: what they score on features of known worth, and ``d2v probe`` end to end."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tiny_training import ROOT, resolved, scaled_down

from d2v_plugin.cli.main import main
from d2v_plugin.errors import UserError
from d2v_plugin.eval.image_probe import ImageScores, Part, check_labels, format_table, score

CLASSES, EACH = 3, 15


def part(spread, seed):
    """Features of three classes around three corners of a cube; a wide spread hides them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    corners = torch.nn.functional.one_hot(labels, 8).float()
    return Part(corners + spread * torch.randn(len(labels), 8, generator=generator), labels)


def test_clear_features_are_told_apart_and_noise_is_not():
    clear = score(3, part(0.05, 1), part(0.05, 2), part(0.05, 3))
    assert clear == ImageScores(3, 1.0, 1.0, 1.0, 0.0)
    noise = score(None, part(50.0, 1), part(50.0, 2), part(50.0, 3))
    assert noise.layer is None and max(noise.knn, noise.linear, noise.few) < 0.7
    assert noise.error == pytest.approx((noise.linear * (1 - noise.linear) / (CLASSES * EACH)) ** 0.5)
    table = format_table([clear], [noise], noise).splitlines()
    assert len(table) == 4 and "100.0 +- 0.0 %" in table[1] and table[3].startswith("raw pixels")


def test_pictures_without_classes_and_too_few_of_one():
    labels = torch.arange(2).repeat_interleave(12)
    with pytest.raises(UserError, match="the images of test have no classes; a probe needs test/CLASS/FILE"):
        check_labels({"train": labels, "test": None})
    with pytest.raises(UserError, match="class 0 has 3 images"):
        check_labels({"train": labels[9:]})


@pytest.fixture
def images(tmp_path):
    """Dark and bright noise, as train, valid and test."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for label, level in (("bright", 160), ("dark", 20)):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for n in range(12):
                pixels = level + rng.integers(0, 80, (24, 24), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / label / f"{n}.png")
    return tmp_path / "images"


@pytest.fixture
def checkpoint(images, tmp_path):
    from fairseq import tasks

    path = ROOT / "examples" / "vision" / "base_imagenet_v2.yaml"
    cfg = resolved(scaled_down(path, images, tmp_path / "run"))
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    torch.save({"cfg": OmegaConf.to_container(cfg), "model": model.state_dict()}, tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def test_layers_the_untrained_network_and_pixels(checkpoint, images, tmp_path, capsys):
    words = ["probe", str(checkpoint), str(images), "--untrained", "--layers", "0", "3"]
    assert main([*words, "--json", str(tmp_path / "out" / "scores.json")]) == 0
    shown = capsys.readouterr().out
    assert "images: 24 in train, 24 in valid, 24 in test" in shown and shown.count("untrained") == 2
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [row["layer"] for row in found["trained"]] == [row["layer"] for row in found["untrained"]] == [0, 3]
    assert found["pixels"]["layer"] is None and found["pixels"]["linear"] == 1.0
    assert found["images"] == {"train": 24, "valid": 24, "test": 24}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--layers", "4"], "--layers must be 0 to 3, got 4"),
        (["--pixel-size", "0"], "--pixel-size must be at least 1, got 0"),
        (["--device", "tpu"], "--device tpu is not a device"),
    ],
)
def test_what_cannot_be_is_one_line(checkpoint, images, capsys, words, message):
    assert main(["probe", str(checkpoint), str(images), *words]) == 2
    assert f"d2v: error: {message}" in capsys.readouterr().err


def test_the_layout_of_imagenet(checkpoint, images, capsys):
    (images / "test").rename(images / "held-out")
    (images / "valid").rename(images / "val")
    assert main(["probe", str(checkpoint), str(images), "--layers", "3"]) == 0
    shown = capsys.readouterr().out
    assert "has no test, so val both chooses the penalty of the linear probe and is scored" in shown
    assert "images: 24 in train, 24 in valid, 24 in test" in shown


def test_a_part_that_is_not_there(checkpoint, images, tmp_path, capsys):
    (images / "valid").rename(images / "held-out")
    assert main(["probe", str(checkpoint), str(images)]) == 2
    assert "has no valid (found: held-out, test, train); a probe takes a folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["probe", str(checkpoint), str(tmp_path / "empty")]) == 2
    assert "has no train and no valid (found: nothing)" in capsys.readouterr().err
