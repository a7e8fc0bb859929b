"""Upstream's own YAML files of image classification train our models, from checkpoints of each kind they are for."""

from pathlib import Path

import fairseq
import pytest
from omegaconf import OmegaConf
from tiny_training import scaled_down, train

from d2v_plugin.checkpoints import read_checkpoint

UPSTREAM = Path(fairseq.__file__).parent / "examples/data2vec/config/vision/finetuning"
# file -> recipes whose checkpoints it takes
FILES = {
    "imagenet": ["base_imagenet"],
    "mae_imagenet_clean": ["base_imagenet_v2", "mae_base_imagenet"],
    "mae_imagenet_large_clean": ["base_imagenet_v2"],
    "mae_imagenet_huge_clean": ["base_imagenet_v2"],
}


def test_all_of_them_are_found():
    assert {path.stem for path in UPSTREAM.glob("*.yaml")} == set(FILES)


@pytest.mark.parametrize(("name", "body"), [(name, body) for name, bodies in FILES.items() for body in bodies])
def test_trains_two_steps(name, body, data, pretrained_images, tmp_path):
    path = UPSTREAM / f"{name}.yaml"
    raw = OmegaConf.load(path)
    train(scaled_down(path, data("vision"), tmp_path, pretrained_images(body)))
    state = read_checkpoint(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    names = {group: state["cfg"][group]["_name"] for group in ("task", "criterion", "model", "optimizer")}
    assert names == {group: raw[group]._name for group in names}
    assert state["model"]["head.weight"].shape == (2, 32)
    assert ("model.cls_token" in state["model"]) == (body == "mae_base_imagenet")
    # a percentage of the 8 images in valid
    assert float(state["extra_state"]["best"]) % 12.5 == 0
    if names["optimizer"] == "composite":
        # the tiny bodies have three and two blocks; below MAE's learns slower still, below 2.0's at the full rate
        decay = raw.model.get("layer_decay", 0.65)
        assert rates(state) == pytest.approx([1, decay, decay**2, decay**3], rel=1e-6)


def rates(state):
    """The learning rates of composite's optimisers at the end, as shares of the highest."""
    groups = state["last_optimizer_state"].values()
    found = [group["param_groups"][0]["lr"] for group in groups if isinstance(group, dict)]
    return sorted({round(lr / max(found), 9) for lr in found}, reverse=True)
