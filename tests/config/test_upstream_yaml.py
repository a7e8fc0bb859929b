"""Upstream's own YAML files train our models once ``common.user_dir`` names this plugin and ``task.data`` some data."""

from pathlib import Path

import fairseq
import pytest
from omegaconf import OmegaConf
from tiny_training import modality, scaled_down, train, write_data

from d2v_plugin.checkpoints import read_checkpoint

UPSTREAM = Path(fairseq.__file__).parent / "examples" / "data2vec" / "config"
MODELS = ("data2vec_audio", "data2vec_multi", "mae")


def pretraining_files():
    """Every pre-training configuration of a model that is ours, cluster settings aside."""
    for path in sorted(UPSTREAM.rglob("*.yaml")):
        if path.parent.name != "run_config":
            model = OmegaConf.load(path).get("model", {})
            if model.get("_name") in MODELS:
                yield path


FILES = list(pretraining_files())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Gives the folder with data of a modality, written when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = write_data(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


def test_all_of_them_are_found():
    assert len(FILES) == 12
    by_model = {model: sum(OmegaConf.load(path).model._name == model for path in FILES) for model in MODELS}
    assert by_model == {"data2vec_audio": 2, "data2vec_multi": 9, "mae": 1}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_trains_two_steps(path, data, tmp_path):
    raw = OmegaConf.load(path)
    train(scaled_down(path, data(modality(raw)), tmp_path))
    state = read_checkpoint(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    names = {group: state["cfg"][group]["_name"] for group in ("task", "criterion", "model")}
    assert names == {"task": raw.task._name, "criterion": "model", "model": raw.model._name}
    assert any(key.startswith("_ema") for key in state["model"]) == (raw.model._name != "mae")
