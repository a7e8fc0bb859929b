"""Upstream's own YAML files train our models once ``common.user_dir`` names this plugin and ``task.data`` some data."""

from pathlib import Path

import fairseq
import pytest
from omegaconf import OmegaConf
from tiny_training import ROOT, modality, scaled_down, train

from d2v_plugin.checkpoints import read_checkpoint

UPSTREAM = Path(fairseq.__file__).parent / "examples" / "data2vec" / "config"
MODELS = ("data2vec_audio", "data2vec_multi", "data2vec_text", "data2vec_vision", "mae")


def pretraining_files():
    """Every pre-training configuration of a model that is ours, cluster settings aside."""
    for path in sorted(UPSTREAM.rglob("*.yaml")):
        if path.parent.name != "run_config":
            model = OmegaConf.load(path).get("model", {})
            if model.get("_name") in MODELS:
                yield path


FILES = list(pretraining_files())


def test_all_of_them_are_found():
    assert len(FILES) == 15
    by_model = {model: sum(OmegaConf.load(path).model._name == model for path in FILES) for model in MODELS}
    expected = {"data2vec_audio": 2, "data2vec_multi": 9, "data2vec_text": 1, "data2vec_vision": 2, "mae": 1}
    assert by_model == expected


def named_paths(node, prefix=""):
    """``(key, value)`` of each setting that names a file or folder: by its key's name, or by a slash in its value."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from named_paths(value, f"{prefix}{name}.")
        elif isinstance(value, str) and (name.endswith(("dir", "path", "data")) or "/" in value):
            yield f"{prefix}{name}", value


def test_paths_are_found():
    found = dict(named_paths(OmegaConf.to_container(OmegaConf.load(UPSTREAM / "v2" / "base_images_only_task.yaml"))))
    assert found["task.local_cache_path"].startswith("/scratch")
    assert {"common.tensorboard_logdir", "common.user_dir", "task.data"} < found.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_trains_two_steps(path, data, tmp_path):
    raw = OmegaConf.load(path)
    folder = data(modality(raw))
    cfg = scaled_down(path, folder, tmp_path)
    read = {"task.data": str(folder), "common.user_dir": str(ROOT / "d2v_plugin")}
    for key, value in named_paths(OmegaConf.to_container(cfg)):
        assert value == read.get(key) or Path(value).is_relative_to(tmp_path), f"{key}={value}"
    train(cfg)
    state = read_checkpoint(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    names = {group: state["cfg"][group]["_name"] for group in ("task", "criterion", "model")}
    assert names == {"task": raw.task._name, "criterion": "model", "model": raw.model._name}
    assert any("_ema" in key for key in state["model"]) == (raw.model._name != "mae")
