"""``data2vec_multi`` in the commands that look at speech models: which layers it has, and what is refused."""

import pytest
import torch
from tiny_multi import text_task
from tiny_speech import write_multi

from d2v_plugin.cli.main import main
from d2v_plugin.errors import UserError
from d2v_plugin.eval.features import iterate_features
from d2v_plugin.eval.load import PRETRAINED, load_model, load_multi
from d2v_plugin.eval.utterances import Utterances


def test_layers_run_from_the_prenet_to_the_last_shared_block(tmp_path, corpus):
    path = write_multi(tmp_path / "m.pt")
    loaded = load_model(path)
    assert (loaded.kind, loaded.name, loaded.depth) == (PRETRAINED, "data2vec_multi", 1 + 3)
    assert loaded.stride == 5 * 2 * 2 * 2
    assert loaded.encoder.ema is None
    assert not any("decoder" in key for key in loaded.model.state_dict())
    utterances = Utterances(corpus.manifest, loaded.sample_rate, loaded.normalize, loaded.receptive_field)
    found = dict(iterate_features(loaded, utterances, [0, 1, 4], 0.0))
    wave = torch.from_numpy(utterances.read(2))
    wave = torch.nn.functional.layer_norm(wave, wave.shape)[None]
    with torch.no_grad():
        expected = loaded.encoder.extract_features(wave, mode="AUDIO")["x"][0]
    torch.testing.assert_close(found[2][4], expected, atol=1e-4, rtol=1e-4)
    assert found[2][0].shape == found[2][1].shape == expected.shape
    assert not torch.allclose(found[2][0], found[2][1])


def test_probe_and_features_commands(tmp_path, corpus, capsys):
    path, out = write_multi(tmp_path / "m.pt"), tmp_path / "f.safetensors"
    assert main(["features", str(path), str(corpus.manifest), "--layers", "4", "--out", str(out)]) == 0
    assert out.stat().st_size > 1000
    assert "data2vec_multi: 4 layers" in capsys.readouterr().out


def test_untrained_weights_differ_and_the_file_s_are_kept(tmp_path):
    path = write_multi(tmp_path / "m.pt", "IMAGE")
    stored = torch.load(path, weights_only=True)["model"]
    model, cfg = load_multi(path, "IMAGE")
    assert cfg.model.modalities.image.patch_size == 4
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    fresh, _ = load_multi(path, "IMAGE", untrained_seed=1)
    assert not torch.equal(fresh.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert model(torch.randn(2, 3, 24, 24), mask=False, features_only=True)["x"].shape == (2, 36, 48)


def test_text_needs_its_dictionary(tmp_path):
    path = write_multi(tmp_path / "t.pt", "TEXT")
    with pytest.raises(UserError, match="vocabulary"):
        load_multi(path, "TEXT")
    model, _ = load_multi(path, "TEXT", dictionary=text_task().source_dictionary)
    assert model.modality_encoders["TEXT"].local_encoder.embed_tokens.num_embeddings == 24
    with pytest.raises(UserError, match="another vocabulary"):
        load_multi(path, "TEXT", dictionary=text_task(words=50).source_dictionary)


def test_a_model_of_another_modality_is_refused(tmp_path):
    with pytest.raises(UserError, match="trained on IMAGE"):
        load_model(write_multi(tmp_path / "m.pt", "IMAGE"))
