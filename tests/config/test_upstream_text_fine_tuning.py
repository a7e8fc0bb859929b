"""Upstream's YAML files for GLUE compose and train, from a checkpoint of ours and from one that upstream wrote."""

from pathlib import Path
from types import SimpleNamespace

import fairseq
import pytest
import tiny_glue
import torch
import upstream
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf
from tiny_text import root_config
from tiny_training import ROOT, SMALL_TEXT_V1, scaled_down, train

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.data.text.glue import TASKS

UPSTREAM = Path(fairseq.__file__).parent / "examples"
V2 = sorted((UPSTREAM / "data2vec" / "config" / "v2" / "text_finetuning").glob("*.yaml"))
V1 = sorted((UPSTREAM / "roberta" / "config" / "finetuning").glob("*.yaml"))
OURS_V1 = sorted((ROOT / "examples" / "text" / "glue_v1").glob("*.yaml"))
EMBEDDING = {
    2: "modality_encoders.TEXT.local_encoder.embed_positions.weight",
    1: "encoder.sentence_encoder.embed_positions.weight",
}


def test_all_of_them_are_found():
    assert [path.stem for path in V2] == [path.stem for path in V1] == [path.stem for path in OURS_V1] == sorted(TASKS)


@pytest.fixture(scope="module")
def checkpoints(data, tmp_path_factory):
    """Gives the tiny checkpoint of pre-training of a version, "ours" or "upstream", made when first asked for."""
    made = {}

    def get(version, whose):
        if (version, whose) not in made:
            folder, text = tmp_path_factory.mktemp("pretrained"), data("glue") / "text"
            if whose == "ours":
                path = tiny_glue.pretrain(text, folder, tiny_glue.V2 if version == 2 else tiny_glue.V1)
            else:
                path = folder / "upstream.pt"
                tiny_glue.upstream_v2(text, path) if version == 2 else upstream_v1(text, path)
            made[version, whose] = path
        return made[version, whose]

    return get


def upstream_v1(text, path):
    """A checkpoint of 1.0 with its teacher, as upstream's trainer writes it."""
    module = upstream.load("data2vec_text")
    sizes = {key.removeprefix("model.").replace(".", "__"): value for key, value in SMALL_TEXT_V1.items()}
    # upstream's reference to another part of the configuration leads nowhere under this model
    root = root_config(**sizes, transformer__decoder__input_dim=8, transformer__decoder__output_dim=8)
    task = SimpleNamespace(source_dictionary=tiny_glue.dictionary_of(text), cfg=SimpleNamespace(data=str(text)))
    with upstream.current_stack():
        root.model = merge_with_parent(module.Data2VecTextConfig(), root.model)
        OmegaConf.resolve(root)
        model = module.Data2VecTextModel.build_model(root.model, task)
    model.encoder.set_num_updates(1)
    cfg = OmegaConf.to_container(root, resolve=True, enum_to_str=True)
    task = {"_name": "masked_lm", "data": "/not/on/this/machine", "tokens_per_sample": tiny_glue.POSITIONS}
    tiny_glue.write_state(path, {**cfg, "task": task, "criterion": {"_name": "model"}}, model)
    assert any(key.startswith("encoder._ema") for key in read_checkpoint(path)["model"])


def trained(path, data, tmp_path, start, **more):
    train(scaled_down(path, data("glue"), tmp_path, start, **more))
    state = read_checkpoint(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2
    assert state["model"]["classification_heads.sentence_classification_head.out_proj.weight"].isfinite().all()
    return state


def assert_started_from(state, start, version, prefix=""):
    """The positions that no text of these tasks reaches are as they were."""
    key = EMBEDDING[version]
    assert torch.equal(state["model"][prefix + key][-3:], read_checkpoint(start)["model"][key][-3:])


KEPT = {"optimizer__weight_decay": 0.0}


@pytest.mark.parametrize("whose", ["ours", "upstream"])
@pytest.mark.parametrize("path", V2, ids=lambda path: path.stem)
def test_2_0_trains_two_steps(path, whose, data, checkpoints, tmp_path):
    start = checkpoints(2, whose)
    state = trained(path, data, tmp_path, start, **KEPT)
    names = {group: state["cfg"][group]["_name"] for group in ("task", "criterion", "model")}
    fairseqs = "sentence_prediction"
    assert names == {"task": fairseqs, "criterion": fairseqs, "model": "data2vec_text_classification"}
    assert_started_from(state, start, 2, "model.")


@pytest.mark.parametrize("whose", ["ours", "upstream"])
@pytest.mark.parametrize("path", V1, ids=lambda path: path.stem)
def test_1_0_trains_two_steps_as_upstreams_readme_says(path, whose, data, checkpoints, tmp_path):
    """fairseq's ``roberta`` takes the weights of ``data2vec_text`` over by itself."""
    start = checkpoints(1, whose)
    state = trained(path, data, tmp_path, start, **KEPT)
    assert state["cfg"]["model"]["_name"] == "roberta"
    assert_started_from(state, start, 1)


@pytest.mark.parametrize("path", OURS_V1, ids=lambda path: path.stem)
def test_1_0_trains_two_steps_with_our_file_from_upstreams_checkpoint(path, data, checkpoints, tmp_path):
    start = checkpoints(1, "upstream")
    state = trained(path, data, tmp_path, start, **KEPT)
    assert state["cfg"]["model"]["_name"] == "data2vec_text"
    assert not any("_ema" in key for key in state["model"])
    assert_started_from(state, start, 1)
