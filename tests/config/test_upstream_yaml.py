"""Upstream's own YAML files train our models once ``common.user_dir`` names this plugin."""

from pathlib import Path

import fairseq
import pytest
from tiny_training import scaled_down, train, write_data

from d2v_plugin.checkpoints import read_checkpoint

UPSTREAM = Path(fairseq.__file__).parent / "examples" / "data2vec" / "config" / "audio" / "pretraining"


@pytest.mark.parametrize("name", ["base_librispeech", "audioset"])
def test_trains_two_steps(name, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_data(data)
    train(scaled_down(UPSTREAM / f"{name}.yaml", data, tmp_path / "run"))
    state = read_checkpoint(tmp_path / "run" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    assert state["cfg"]["task"]["_name"] == "audio_pretraining"
    assert state["cfg"]["criterion"]["_name"] == "model"
    assert "_ema" in state["model"]
