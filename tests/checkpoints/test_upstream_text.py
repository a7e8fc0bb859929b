"""Checkpoints that upstream wrote of 1.0 for text load through fairseq, through ours and go on training."""

from types import SimpleNamespace

import pytest
import tiny_data
import torch
import upstream
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from tiny_multi import text_task
from tiny_text import TINY, WORDS, batch, build, root_config
from tiny_training import ROOT, scaled_down, train

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.eval.load import load_multi
from d2v_plugin.fine_tuning.body import load_body
from d2v_plugin.register import register_plugin

pytestmark = pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning")

# their default leads nowhere on today's fairseq; upstream's own filled in numbers
DECODER = {"transformer__decoder__input_dim": 8, "transformer__decoder__output_dim": 8}


def write(folder, words=WORDS):
    """What upstream's trainer saves: its whole configuration, references replaced."""
    oracle, task = upstream.load("data2vec_text"), text_task(words)
    task.source_dictionary.save(str(folder / "dict.txt"))
    task.cfg = SimpleNamespace(data=None)
    root = root_config(**DECODER)
    theirs = build(root, task, oracle.Data2VecTextModel, oracle.Data2VecTextConfig)
    theirs.set_num_updates(0)
    with torch.no_grad():
        for p in theirs.parameters():  # nothing stays 0, so that the teacher is not the student
            p.add_(0.1 * torch.randn_like(p))
    root.model = OmegaConf.merge(OmegaConf.structured(oracle.Data2VecTextConfig), root.model)
    cfg = OmegaConf.to_container(root, resolve=True, enum_to_str=True)
    task = {"_name": "masked_lm", "data": str(folder), "tokens_per_sample": 40}
    path = upstream.save(folder / "upstream.pt", {**cfg, "task": task, "criterion": {}}, theirs)
    return theirs.eval(), path


def test_read_and_computed_alike(tmp_path):
    theirs, path = write(tmp_path)
    tokens, _ = batch(padded=True)
    with torch.no_grad():
        expected = theirs(tokens, features_only=True)[0]
        task = SimpleNamespace(source_dictionary=text_task(WORDS).source_dictionary)
        ours, _ = load_multi(path, "TEXT", also=("data2vec_text",), dictionary=task.source_dictionary)
        body = load_body(path, kinds=("data2vec_text",), task=task)
        for model in (ours, body.model.eval()):
            torch.testing.assert_close(model(tokens, features_only=True)[0], expected, atol=1e-5, rtol=1e-5)
            assert not any("_ema" in name or "regression_head" in name for name in model.state_dict())
    assert body.dim == 24

    register_plugin()
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    assert type(model).__module__ == "d2v_plugin.models.data2vec_text"
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(tokens, features_only=True)[0], expected, atol=1e-5, rtol=1e-5)
    ema = theirs.encoder.ema.fp32_params
    assert all(torch.equal(model.encoder.ema.fp32[name], value) for name, value in ema.items())


def test_a_run_begins_with_upstreams_weights(tmp_path):
    """Student and teacher as they were saved; then they move."""
    theirs, path = write(tmp_path, tiny_data.WORDS + 1)
    data = tmp_path / "data"
    data.mkdir()
    tiny_data.write_text(data)
    recipe = ROOT / "examples" / "text" / "base_books_wiki.yaml"
    sizes = {f"model__{key}": value for key, value in flat(TINY).items() if key != "_name"}
    still = {"optimization__lr": [1e-30], "model__ema_decay": 1.0, "model__ema_end_decay": 1.0}
    for folder, more in (("still", still), ("moving", {"optimization__lr": [0.01]})):
        cfg = scaled_down(recipe, data, tmp_path / folder, **{**sizes, **more}, checkpoint__init_from=str(path))
        train(cfg)
        saved = read_checkpoint(tmp_path / folder / "checkpoint_last.pt")["model"]
        teacher = saved.pop("encoder._ema")
        for key, value in theirs.encoder.ema.fp32_params.items():
            assert torch.equal(teacher[key], value) == (folder == "still" or key == "version"), key
        for key, value in theirs.state_dict().items():
            if key != "encoder._ema":
                assert torch.equal(saved[key], value) == (folder == "still" or key.endswith("version")), key


def flat(settings, prefix=""):
    """``{"a__b": value}``"""
    found = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}__") if isinstance(value, dict) else {prefix + key: value}
    return found
