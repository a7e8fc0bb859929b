"""``d2v probe`` finds out what a checkpoint is for, and refuses data and options of another modality in one line."""

import pytest
import torch
from tiny_multi import tiny

from d2v_plugin.cli.main import main
from d2v_plugin.cli.probe import MODULES
from d2v_plugin.errors import UserError
from d2v_plugin.eval.modality import modality_of

MODELS = {
    "data2vec_audio": "AUDIO",
    "wav2vec_ctc": "AUDIO",
    "data2vec_vision": "IMAGE",
    "mae": "IMAGE",
    "data2vec_text": "TEXT",
}


def write(path, **model):
    """A file that says what it holds; weights do not matter here."""
    torch.save({"model": {}, "cfg": {"model": model, "task": {}}}, path)
    return path


@pytest.mark.parametrize(("name", "modality"), MODELS.items())
def test_models_of_one_modality(tmp_path, name, modality):
    assert modality_of(write(tmp_path / "x.pt", _name=name)) == modality


@pytest.mark.parametrize("modality", ["AUDIO", "IMAGE", "TEXT"])
def test_2_0_says_its_own(tmp_path, modality):
    assert modality_of(write(tmp_path / "x.pt", _name="data2vec_multi", supported_modality=modality)) == modality


def test_others_are_one_line(tmp_path):
    with pytest.raises(UserError, match="a model of several modalities; name .* --modality audio, image or text"):
        modality_of(write(tmp_path / "x.pt", _name="data2vec_multi", supported_modality=None))
    with pytest.raises(UserError, match="a 'hubert' model; probes take data2vec_audio"):
        modality_of(write(tmp_path / "x.pt", _name="hubert"))


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("data2vec_audio", ["a.tsv"], "a model of audio is probed with two manifests"),
        ("data2vec_audio", ["a.tsv", "b.tsv", "--pixel-size", "8"], "--pixel-size is for image, and "),
        ("data2vec_vision", ["a", "b"], "a model of image is probed with one folder"),
        ("mae", ["a", "--align", "x.pt"], "--align is for audio, and "),
        ("mae", ["a", "--max-seconds", "3"], "--max-seconds is for audio, and "),
        ("data2vec_text", ["a.tsv"], "a model of text is probed with the folder of binarised text"),
        ("data2vec_text", ["a", "a.tsv", "--dict", "x"], "--dict is for audio, and "),
    ],
)
def test_data_and_options_of_another_modality(tmp_path, capsys, model, words, message):
    path = write(tmp_path / "x.pt", _name=model)
    assert main(["probe", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("modality", ["AUDIO", "IMAGE", "TEXT"])
def test_hands_over_what_was_given(tmp_path, monkeypatch, modality):
    """Each modality's own function gets the files under its names, and the defaults of its own options."""
    (tmp_path / "data").mkdir()
    data = {"AUDIO": ["a.tsv", "b.tsv"], "IMAGE": ["folder"], "TEXT": [str(tmp_path / "data"), "a.tsv", "b.tsv"]}
    path, seen = write(tmp_path / "x.pt", _name="data2vec_multi", supported_modality=modality), []
    monkeypatch.setattr(f"d2v_plugin.cli.{MODULES[modality]}.run", lambda args: seen.append(args) or 0)
    assert main(["probe", str(path), *data[modality], "--untrained", "--layers", "1", "2"]) == 0
    (args,) = seen
    assert args.untrained and args.layers == [1, 2] and args.seed == 1 and args.checkpoint == path
    if modality == "AUDIO":
        assert (str(args.train), str(args.test), args.max_seconds, args.max_bad) == ("a.tsv", "b.tsv", 60.0, 10)
    elif modality == "IMAGE":
        assert str(args.data) == "folder" and args.pixel_size == 16
    else:
        assert str(args.data) == data["TEXT"][0] and [str(table) for table in args.tables] == data["TEXT"][1:]


def test_a_model_of_each_modality_is_told(tmp_path):
    """From the configuration that fairseq saves of a real model."""
    model = tiny("IMAGE")
    cfg = {"_name": "data2vec_multi", "supported_modality": str(model.cfg.supported_modality)}
    assert modality_of(write(tmp_path / "x.pt", **cfg)) == "IMAGE"
