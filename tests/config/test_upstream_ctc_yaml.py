"""Upstream's own YAML files for fine-tuning on speech and sound train with a model of this plugin inside.

Those that load ``examples/data2vec`` train on a 2.0 checkpoint, too. The language models that some decode with in
validation are files of the authors' machines, and are left out.
"""

from pathlib import Path

import fairseq
import pytest
import yaml
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from tiny_training import scaled_down, train

from d2v_plugin.checkpoints import read_checkpoint

FOLDER = Path(fairseq.__file__).parent / "examples" / "wav2vec" / "config" / "finetuning"
# a key under `criterion` is indented too far
BROKEN = "vox_1h_aws"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.stem != BROKEN)
# asks the task for something that is in no published code
UNPUBLISHED = {"vox_10h_aws_v100": "cache_in_scratch"}
WITHOUT_LANGUAGE_MODEL = {"criterion__wer_kenlm_model": None, "criterion__wer_lexicon": None}


def cases():
    for path in FILES:
        yield pytest.param(path, 1, id=f"{path.stem}-1.0")
        if "data2vec" in str(OmegaConf.load(path).common.get("user_dir")):
            yield pytest.param(path, 2, id=f"{path.stem}-2.0")


CASES = list(cases())


def test_all_of_them_are_found():
    assert len(FILES) == 27
    assert len(CASES) == 27 + 16


def test_the_one_left_out_is_no_yaml():
    with pytest.raises(yaml.YAMLError, match="mapping values are not allowed here"):
        yaml.safe_load((FOLDER / f"{BROKEN}.yaml").read_text())


@pytest.mark.parametrize(("path", "version"), CASES)
def test_trains_two_steps(path, version, data, pretrained_speech, tmp_path):
    raw = OmegaConf.load(path)
    start = pretrained_speech(version, bool(raw.task.get("normalize", False)))
    more = WITHOUT_LANGUAGE_MODEL if "wer_kenlm_model" in raw.criterion else {}
    cfg = scaled_down(path, data("speech"), tmp_path, start, **more)
    if path.stem in UNPUBLISHED:
        with pytest.raises(OmegaConfBaseException, match=f"Key '{UNPUBLISHED[path.stem]}' not in"):
            train(cfg)
        with open_dict(cfg):
            del cfg.task[UNPUBLISHED[path.stem]]
    train(cfg)

    state = read_checkpoint(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    assert state["cfg"]["task"]["_name"] == raw.task._name == "audio_finetuning"
    assert all(value.isfinite().all() for value in state["model"].values() if value.is_floating_point())
    inside = {1: "w2v_encoder.w2v_model.post_extract_proj.weight", 2: "w2v_encoder.w2v_model.blocks.0.attn.qkv.weight"}
    assert inside[version] in state["model"]


@pytest.mark.parametrize("version", [1, 2])
def test_classification_trains_two_steps(version, data, pretrained_speech, tmp_path):
    path = FOLDER.parents[2] / "data2vec" / "config" / "audio" / "classification" / "base_classification.yaml"
    train(scaled_down(path, data("speech"), tmp_path, pretrained_speech(version), dataset__validate_interval=1))
    state = read_checkpoint(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    assert state["cfg"]["task"]["_name"] == state["cfg"]["model"]["_name"] == "audio_classification"
    assert all(value.isfinite().all() for value in state["model"].values() if value.is_floating_point())
    assert 0 < state["extra_state"]["val_loss"] <= 1  # mAP, though the set has four recordings
