"""Masks drawn over images, text and spectrograms: what is painted over, and ``d2v plot`` on tiny checkpoints."""

import numpy as np
import pytest
import torch
from matplotlib import image
from omegaconf import OmegaConf
from tiny_training import ROOT, resolved, scaled_down, write_data

from d2v_plugin.cli.main import main
from d2v_plugin.eval.mask_pictures import HIDDEN_RGB, cover, draw_masks, plot_token_masks, wrap

RECIPES = {
    "speech": "speech/base_librispeech_v2",
    "vision": "vision/base_imagenet_v2",
    "text": "text/base_books_wiki_v2",
    "text 1.0": "text/base_books_wiki",
}


def build_text(folder, _):
    """What ``d2v text build`` makes of three hundred lines of random words."""
    words = np.random.default_rng(0).choice(["ever", "so", "many", "words", "stand", "here", "and", "there"], (300, 8))
    (folder / "corpus.txt").write_text("".join(" ".join(line) + "\n\n" for line in words))
    options = ["--vocab-size", "25", "--valid-share", "0.1", "--dest", str(folder / "built")]
    assert main(["text", "build", str(folder / "corpus.txt"), *options]) == 0
    for file in (folder / "built").iterdir():
        file.rename(folder / file.name)


@pytest.fixture
def checkpoint(tmp_path):
    """Gives ``(checkpoint, data)`` of an untrained model, as small as the tests of the recipes have it."""

    def make(name):
        from fairseq import tasks

        (build_text if "text" in name else write_data)(tmp_path, name)
        cfg = resolved(scaled_down(ROOT / "examples" / f"{RECIPES[name]}.yaml", tmp_path, tmp_path / "run"))
        model = tasks.setup_task(cfg.task).build_model(cfg.model)
        path = tmp_path / "tiny.pt"
        torch.save({"cfg": OmegaConf.to_container(cfg), "model": model.state_dict()}, path)
        return path, tmp_path

    return make


def drawn(path):
    found = image.imread(path)
    assert found.ndim == 3 and min(found.shape[:2]) > 100 and found[..., :3].std() > 0.01
    return np.round(255 * found[..., :3]).astype(np.uint8)


def painted(pixels):
    """Share of the pixels in the colour of what is hidden."""
    return (pixels == HIDDEN_RGB).all(-1).mean()


def test_masked_patches_are_painted_over_and_nothing_else():
    picture = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)
    mask = np.array([True, False, False, True, False, False, False, False, False])  # 3 x 3 patches of 2 x 2 pixels
    covered = cover(picture, mask)
    assert (covered[:2, :2] == HIDDEN_RGB).all() and (covered[2:4, :2] == HIDDEN_RGB).all()
    assert (covered[:2, 2:] == picture[:2, 2:]).all() and (covered[4:] == picture[4:]).all()
    assert (covered[2:4, 2:] == picture[2:4, 2:]).all()


@pytest.mark.parametrize("patches", [8, 25])
def test_patches_that_do_not_tile_the_image(patches):
    with pytest.raises(ValueError, match=f"{patches} patches do not tile an image of 6 x 6"):
        cover(np.zeros((6, 6, 3), np.uint8), np.zeros(patches, bool))


def test_tokens_stand_one_after_the_other_and_lines_break_between_them():
    assert wrap(["ab", " c", "def", "g"], 5) == [[(0, 0), (1, 2)], [(2, 0), (3, 3)]]
    assert wrap(["much too long", "x"], 5) == [[(0, 0)], [(1, 0)]]


def test_more_masked_tokens_are_more_paint(tmp_path):
    tokens = [f" w{n}" for n in range(40)]
    few, many = np.zeros((2, 40), bool), np.ones((2, 40), bool)
    few[:, :4] = True
    shares = [
        painted(drawn(plot_token_masks(tokens, masks, tmp_path / f"{name}.png", "words")))
        for name, masks in (("few", few), ("many", many))
    ]
    assert 0 < shares[0] < shares[1] / 5


def test_images(checkpoint, tmp_path, capsys):
    path, data = checkpoint("vision")
    files = sorted(str(file) for file in (data / "valid" / "a").glob("*.png"))[:3]
    assert main(["plot", "--image", *files, "--mask-from", str(path), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / "image_mask.png")]
    assert painted(drawn(tmp_path / "out" / "image_mask.png")) > 0.2


def test_an_image_that_is_none_is_one_line(checkpoint, tmp_path, capsys):
    path, _ = checkpoint("vision")
    (tmp_path / "x.png").write_text("no image")
    assert main(["plot", "--image", str(tmp_path / "x.png"), "--mask-from", str(path), "--out", str(tmp_path)]) == 2
    assert "x.png: not an image" in capsys.readouterr().err


def test_masks_are_those_of_the_settings(checkpoint):
    from d2v_plugin.eval.load import load_multi

    path, _ = checkpoint("vision")
    model, _ = load_multi(path, "IMAGE")
    masks = draw_masks(model.modality_encoders["IMAGE"], 36, samples=3, clones=2)
    assert masks.shape == (3, 2, 36) and masks.dtype == bool
    assert set(masks.sum(-1).ravel()) == {36 - round(36 * 0.2)}
    assert (draw_masks(model.modality_encoders["IMAGE"], 36, 3, 2, seed=2) != masks).any()


def test_a_recording_under_each_mask(checkpoint, tmp_path):
    path, data = checkpoint("speech")
    assert main(["plot", "--utterance", str(data / "0.wav"), "--mask-from", str(path), "--out", str(tmp_path)]) == 0
    assert painted(drawn(tmp_path / "mask.png")) > 0.02
    words = ["plot", "--utterance", str(data / "0.wav"), "--mask-from", str(path), "--out", str(tmp_path)]
    assert main([*words, "--mask-prob", "0.3"]) == 2


@pytest.mark.parametrize("name", ["text", "text 1.0"])
def test_text(checkpoint, tmp_path, capsys, name):
    path, data = checkpoint(name)
    words = ["plot", "--text", str(data), "--mask-from", str(path), "--out", str(tmp_path)]
    assert main(words) == 0
    assert painted(drawn(tmp_path / "token_mask.png")) > 0.05
    assert main([*words, "--sequence", "1000"]) == 2
    assert "--sequence must be 0 to " in capsys.readouterr().err


def test_without_a_checkpoint_there_are_no_masks(tmp_path, capsys):
    assert main(["plot", "--text", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--image and --text need --mask-from" in capsys.readouterr().err
