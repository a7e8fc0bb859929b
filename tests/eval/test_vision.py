"""Checkpoints of 1.0 for images, ours and with upstream's keys: features, ``d2v probe`` and ``d2v plot``."""

import json

import matplotlib.image
import numpy as np
import pytest
import torch
import upstream
from fairseq import checkpoint_utils
from image_corpus import write_folder
from tiny_training import ROOT, scaled_down, train
from tiny_vision import TINY, images, oracle

from d2v_plugin.cli.main import main
from d2v_plugin.data.images.source import find_images
from d2v_plugin.errors import UserError
from d2v_plugin.eval.image_features import ImageInput, depth, image_features, load_image_model
from d2v_plugin.eval.load import load_model
from d2v_plugin.eval.mask_pictures import HIDDEN_RGB, draw_masks
from d2v_plugin.register import register_plugin


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    names = [f"{s}/{label}/{n}.png" for s in ("train", "valid", "test") for label in "ab" for n in range(12)]
    return write_folder(tmp_path_factory.mktemp("data"), names, 60, 50)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A checkpoint of two updates."""
    folder = tmp_path_factory.mktemp("run")
    train(scaled_down(ROOT / "examples" / "vision" / "base_imagenet.yaml", data, folder))
    return folder / "checkpoint_last.pt"


@pytest.fixture
def upstreams(tmp_path):
    """``(upstream's model, a checkpoint of it)`` as its trainer saves one, trained where this machine has nothing."""
    torch.manual_seed(0)
    theirs = oracle(shared_rel_pos_bias=True).eval()
    theirs.set_num_updates(0)
    task = {"_name": "image_pretraining", "data": "/not/on/this/machine", "input_size": 24}
    cfg = {
        "common": {"seed": 1},
        "model": {"_name": "data2vec_vision", **TINY},
        "task": task,
        "criterion": {"_name": "model"},
    }
    return theirs, upstream.save(tmp_path / "upstream.pt", cfg, theirs)


@pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_a_checkpoint_of_upstream_computes_the_same(upstreams):
    theirs, path = upstreams
    img = images()
    model, cfg = load_image_model(path)
    register_plugin()
    (whole,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    assert type(whole).__module__ == "d2v_plugin.models.data2vec_vision" and whole.ema is not None
    assert type(task).__name__ == "ImagePretrainingTask" and cfg.task.input_size == 24
    with torch.no_grad():
        last = theirs(img, mask=False, layer_results=True)[-1]
        torch.testing.assert_close(model(img, mask=False), last, atol=1e-5, rtol=1e-5)
        expected = theirs(img, mask=False)
        torch.testing.assert_close(whole.eval()(img, mask=False), expected, atol=1e-5, rtol=1e-5)


def test_layers_of_features(trained, data):
    model, cfg = load_image_model(trained)
    assert depth(model) == 2 and model.ema is None
    index, sees = find_images([str(data)], "test"), ImageInput.of(cfg.task)
    assert sees.input_size == 48
    found = image_features(model, index, sees, layers=[0, 1, 2], batch_size=5).layers
    assert all(layer.shape == (24, 32) for layer in found.values())
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])
    fresh, _ = load_image_model(trained, untrained_seed=1)
    assert not torch.equal(fresh.cls_emb, model.cls_emb)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.encoder.blocks)
    # the last layer, without the class token, is the mean of what the model returns
    whole = model.forward
    seen = []
    model.forward = lambda *args, **kwargs: seen.append(whole(*args, **kwargs)) or seen[-1]
    last = image_features(model, index, sees, batch_size=24).layers[2]
    torch.testing.assert_close(last, seen[0].mean(1), atol=1e-5, rtol=1e-5)


def test_probe_images(trained, data, tmp_path, capsys):
    words = ["probe", str(trained), str(data), "--untrained", "--layers", "0", "2"]
    assert main([*words, "--json", str(tmp_path / "scores.json")]) == 0
    assert "images: 24 in train, 24 in valid, 24 in test" in capsys.readouterr().out
    found = json.loads((tmp_path / "scores.json").read_text())
    assert [row["layer"] for row in found["trained"]] == [row["layer"] for row in found["untrained"]] == [0, 2]


def test_its_masks_over_images(trained, data, tmp_path):
    files = sorted(str(file) for file in (data / "test" / "a").glob("*.png"))[:2]
    assert main(["plot", "--image", *files, "--mask-from", str(trained), "--out", str(tmp_path)]) == 0
    pixels = np.round(255 * matplotlib.image.imread(tmp_path / "image_mask.png")[..., :3]).astype(np.uint8)
    assert 0.1 < (pixels == HIDDEN_RGB).all(-1).mean() < 0.6
    model, _ = load_image_model(trained)
    masks = draw_masks(model.masks, 36, samples=3, clones=4)
    assert masks.shape == (3, 4, 36) and masks.dtype == bool and 0 < masks.sum(-1).min() <= masks.sum(-1).max() <= 20
    assert (draw_masks(model.masks, 36, 3, 4, seed=2) != masks).any()


def test_a_command_for_speech_refuses_it(trained):
    with pytest.raises(UserError, match="holds a 'data2vec_vision' model; this command takes"):
        load_model(trained)
