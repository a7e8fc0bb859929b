"""Checkpoints that upstream wrote of its 2.0 models load through fairseq and through ours, and compute the same."""

import pytest
import torch
import upstream
from fairseq import checkpoint_utils
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf
from tiny_multi import batch, root_config, text_task

from d2v_plugin.eval.load import load_multi
from d2v_plugin.register import register_plugin

TASKS = {
    "AUDIO": {"_name": "audio_pretraining", "data": "/not/on/this/machine", "normalize": True},
    "IMAGE": {"_name": "mae_image_pretraining", "data": "/not/on/this/machine", "key": "source", "input_size": 24},
    "TEXT": {"_name": "masked_lm", "d2v2_multi": True, "skip_masking": True},
}
SETTINGS = {
    "AUDIO": {"use_alibi_encoder": True, "learned_alibi_scale": True, "learned_alibi_scale_per_head": True},
    "IMAGE": {"num_extra_tokens": 1, "ema_local_encoder": True},
    "TEXT": {"prenet_depth": 0},
}


def write(folder, modality, form):
    """What upstream's trainer saves: its whole configuration, with enumeration members as they were or as text."""
    module = upstream.load_v2("models.data2vec2")
    root = root_config(modality, SETTINGS[modality], ema_encoder_only=modality == "TEXT")
    task = dict(TASKS[modality])
    if modality == "TEXT":
        text_task().source_dictionary.save(str(folder / "dict.txt"))
        task["data"] = str(folder)
    with upstream.current_stack():
        cfg = merge_with_parent(module.Data2VecMultiConfig(), root.model)
        theirs = module.Data2VecMultiModel.build_model(cfg, text_task())
    root.model = cfg
    model_cfg = OmegaConf.to_container(root, resolve=True, enum_to_str=form == "text")
    cfg = {**model_cfg, "task": task, "criterion": {"_name": "model"}}
    return theirs.eval(), upstream.save(folder / "upstream.pt", cfg, theirs)


@pytest.mark.parametrize("form", ["text", "members"])
@pytest.mark.parametrize("modality", TASKS)
def test_read_and_computed_alike(tmp_path, modality, form):
    theirs, path = write(tmp_path, modality, form)
    source, padding_mask = batch(modality, padded=True)
    more = {"padding_mask": padding_mask, "mask": False, "features_only": True}
    with torch.no_grad():
        expected = theirs(source, **more)["x"]
        ours, cfg = load_multi(path, modality, dictionary=text_task().source_dictionary)
        torch.testing.assert_close(ours(source, **more)["x"], expected, atol=1e-5, rtol=1e-5)
    assert not any("decoder" in name for name in ours.state_dict())

    register_plugin()
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    assert type(model).__module__ == "d2v_plugin.models.data2vec_multi"
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(source, **more)["x"], expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(model.ema.fp32[name], value) for name, value in theirs.ema.fp32_params.items())
