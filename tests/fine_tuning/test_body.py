"""The pre-trained body: what it takes from a checkpoint, what it refuses, and that it needs the file once only."""

import pytest
import torch
from omegaconf import OmegaConf
from tiny_multi import batch, root_config, text_task, tiny

from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.body import load_body

TASK = {"_name": "d2v_audio_pretraining", "data": "/not/on/this/machine", "normalize": True}


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a tiny checkpoint of a modality with its teacher; gives ``(path, model)``."""

    def write(modality="AUDIO", **changes):
        torch.manual_seed(3)
        model = tiny(modality)
        cfg = OmegaConf.to_container(root_config(modality), resolve=True) | {"task": TASK}
        cfg["model"] |= changes
        torch.save({"cfg": cfg, "model": model.state_dict()}, tmp_path / "p.pt")
        return tmp_path / "p.pt", model

    return write


@pytest.mark.parametrize("modality", ["AUDIO", "IMAGE", "TEXT"])
def test_the_weights_are_those_of_the_file_and_the_rest_is_gone(checkpoint, modality):
    path, model = checkpoint(modality)
    body = load_body(path, modality=modality, task=text_task())
    assert (body.name, body.dim, body.model.ema) == ("data2vec_multi", 48, None)
    assert not any("decoder" in key or "_ema" in key for key in body.model.state_dict())
    source, _ = batch(modality)
    found = body.model.eval().extract_features(source)["x"]
    torch.testing.assert_close(found, model.eval().extract_features(source)["x"])


def test_the_second_time_no_file_is_needed(checkpoint):
    path, _ = checkpoint()

    def adjust(model_cfg):
        model_cfg.encoder_dropout = 0.25

    body = load_body(path, modality="AUDIO", normalize=True, adjust=adjust)
    stored = OmegaConf.to_container(body.cfg)
    assert set(stored) == {"model", "task", "common", "optimization"}
    path.unlink()
    again = load_body("gone.pt", stored, modality="AUDIO", normalize=True)
    assert again.cfg.model.encoder_dropout == 0.25
    again.model.load_state_dict(body.model.state_dict())


def test_from_scratch_the_weights_are_those_of_the_run_s_seed(checkpoint):
    path, model = checkpoint()
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(load_body(path, modality="AUDIO", weights=False).model.blocks[0].attn.qkv.weight)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert not torch.equal(made[0], model.blocks[0].attn.qkv.weight)


def test_weights_can_be_changed_before_they_are_loaded(checkpoint):
    path, _ = checkpoint()

    def zero(model, weights):
        weights["blocks.0.attn.qkv.weight"] = torch.zeros_like(weights["blocks.0.attn.qkv.weight"])

    assert not load_body(path, before_load=zero).model.blocks[0].attn.qkv.weight.any()


@pytest.mark.parametrize(
    ("modality", "changes", "asked", "message"),
    [
        ("IMAGE", {}, {"modality": "AUDIO"}, "was trained on IMAGE; this needs a model of AUDIO"),
        ("AUDIO", {}, {"kinds": ("mae", "data2vec_vision")}, "holds a data2vec_multi model; .* mae or data2vec_vision"),
        ("AUDIO", {}, {"normalize": False}, "task.normalize=False .* pre-trained with True; set task.normalize=True"),
        ("AUDIO", {"embed_dim": 32}, {}, "do not fit the model"),
    ],
)
def test_what_does_not_go_together_is_one_line(checkpoint, modality, changes, asked, message):
    path, _ = checkpoint(modality, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_body(path, **asked)
    assert "\n" not in str(caught.value)
