"""Layer outputs: numbering, padding, sharding."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_speech import write_ctc, write_multi, write_pretrained, write_wav2vec2

from d2v_plugin.cli.main import main
from d2v_plugin.errors import UserError
from d2v_plugin.eval.features import FeatureWriter, check_layers, iterate_features
from d2v_plugin.eval.load import load_model
from d2v_plugin.eval.utterances import Utterances


def collect(loaded, manifest, layers, max_seconds):
    utterances = Utterances(manifest, loaded.sample_rate, loaded.normalize, loaded.receptive_field)
    return dict(iterate_features(loaded, utterances, layers, max_seconds))


@pytest.mark.parametrize("norm_first", [False, True])
def test_batch_equals_single(tmp_path, corpus, norm_first):
    loaded = load_model(write_pretrained(tmp_path / "p.pt", norm_first=norm_first))
    layers = check_layers(None, loaded.depth)
    batched, single = (collect(loaded, corpus.manifest, layers, seconds) for seconds in (60.0, 0.0))
    assert sorted(batched) == list(range(8))
    for index in batched:
        for layer in layers:
            a, b = batched[index][layer], single[index][layer]
            assert a.shape == b.shape and a.shape[1] == 32
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


def test_models_that_see_padding_are_announced(tmp_path, corpus):
    assert load_model(write_pretrained(tmp_path / "g.pt", mode="default")).padding_changes_results
    assert not load_model(write_pretrained(tmp_path / "l.pt")).padding_changes_results
    assert load_model(write_multi(tmp_path / "m.pt")).padding_changes_results


def test_layer_numbering(corpus, pretrained):
    loaded = load_model(pretrained)
    found = collect(loaded, corpus.manifest, [0, 1, 2, 3], 0.0)[4]
    encoder = loaded.encoder.encoder
    with torch.no_grad():
        x = found[0][None]
        for number, block in enumerate(encoder.layers, 1):
            x = block(x)[0]
            torch.testing.assert_close(x[0], found[number], atol=1e-5, rtol=1e-5)
        # layer 0 alone computes one block and gives the same numbers
        torch.testing.assert_close(collect(loaded, corpus.manifest, [0], 0.0)[4][0], found[0])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_wav2vec2_is_read_too(tmp_path, corpus):
    loaded = load_model(write_wav2vec2(tmp_path / "w.pt"))
    batched, single = (collect(loaded, corpus.manifest, [0, 2], seconds) for seconds in (60.0, 0.0))
    for index in batched:
        for layer in (0, 2):
            torch.testing.assert_close(batched[index][layer], single[index][layer], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["pretrained", "ctc"])
def test_command(tmp_path, corpus, pretrained, kind, capsys):
    checkpoint = pretrained if kind == "pretrained" else write_ctc(tmp_path / "c.pt", corpus.folder / "dict.ltr.txt")
    out = tmp_path / "out" / "f.safetensors"
    assert (
        main(
            [
                "features",
                str(checkpoint),
                str(corpus.manifest),
                "--layers",
                "1",
                "3",
                "--out",
                str(out),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    tensors = load_file(out)
    assert sorted(tensors) == sorted(f"u{n}/layer_{layer}" for n in range(8) for layer in (1, 3))
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["frame_rate"] == "50" and metadata["sample_rate"] == "8000"
    assert json.loads(metadata["paths"])["u3"] == "u3.wav"
    assert json.loads(metadata["layers"]) == [1, 3] and json.loads(metadata["normalize"]) is True
    assert "8 recordings" in capsys.readouterr().out


def test_shards_hold_the_same(tmp_path, corpus, pretrained):
    one, many = tmp_path / "one.safetensors", tmp_path / "many.safetensors"
    base = ["features", str(pretrained), str(corpus.manifest), "--device", "cpu", "--dtype", "float16", "--out"]
    assert main([*base, str(one)]) == 0
    assert main([*base, str(many), "--shard-gigabytes", "5e-6"]) == 0
    index = json.loads(Path(f"{many}.index.json").read_text())["weight_map"]
    shards = sorted(set(index.values()))
    assert len(shards) > 1 and not list(tmp_path.glob("*.partial"))
    merged = {key: value for shard in shards for key, value in load_file(tmp_path / shard).items()}
    expected = load_file(one)
    assert set(merged) == set(expected) == set(index)
    assert all(torch.equal(merged[key], expected[key]) and merged[key].dtype == torch.float16 for key in expected)


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, corpus, pretrained, capsys):
    """A folder stands where the second shard would, which safetensors answers with an error of its own."""
    (tmp_path / "f-00002.partial").mkdir()
    out = tmp_path / "f.safetensors"
    words = ["features", str(pretrained), str(corpus.manifest), "--device", "cpu", "--out", str(out)]
    assert main([*words, "--shard-gigabytes", "5e-6"]) == 2
    error = capsys.readouterr().err
    assert "f-00002.partial: " in error and "choose another --out" in error
    assert error.splitlines()[-1].startswith("d2v: error: cannot write")
    assert [path.name for path in tmp_path.glob("f*")] == ["f-00002.partial"]


def test_a_run_that_stops_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), FeatureWriter(tmp_path / "f.safetensors", {}, 1) as writer:
        writer.add("a", "a.wav", {1: torch.ones(2, 3)})
        assert (tmp_path / "f-00001.partial").is_file()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_left_out_entries_are_told(tmp_path, corpus, pretrained, capsys):
    with corpus.manifest.open("a") as file:
        file.write("gone.wav\t0\n")
    words = ["features", str(pretrained), str(corpus.manifest), "--device", "cpu", "--out"]
    assert main([*words, str(tmp_path / "f.safetensors")]) == 0
    assert "1 of 9 entries left out (1 with 0 frames)" in capsys.readouterr().out


def test_wrong_layer_is_refused():
    with pytest.raises(UserError, match="0 to 3 for this model, got 4"):
        check_layers([1, 4], 3)


def test_the_file_is_as_readable_as_others(corpus, pretrained, tmp_path):
    out = tmp_path / "f.safetensors"
    assert main(["features", str(pretrained), str(corpus.manifest), "--out", str(out)]) == 0
    (tmp_path / "other").write_text("")
    assert out.stat().st_mode == (tmp_path / "other").stat().st_mode
