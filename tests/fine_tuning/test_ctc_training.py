"""CTC training of both versions: error rates in validation, the best checkpoint by them, loading without the rest."""

import json
import shutil

import pytest
import torch
from audio_corpus import Corpus
from fairseq import checkpoint_utils
from rapidfuzz.distance import Levenshtein
from tiny_training import ROOT, scaled_down, train, write_data
from validating import logged, validated

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.cli.main import main
from d2v_plugin.eval.load import load_model
from d2v_plugin.eval.utterances import Utterances, normalise

EXAMPLES = ROOT / "examples" / "speech"
EPOCHS = 28
# Learns the four utterances by heart: the validation set is the training set.
OVERFIT = {
    "optimization__max_update": 10_000,
    "optimization__max_epoch": EPOCHS,
    "optimization__lr": [0.005],
    "dataset__validate_interval": 1,
    "dataset__validate_after_updates": 0,
    "dataset__valid_subset": "valid",
    "dataset__required_batch_size_multiple": 1,
    "dataset__max_tokens": 20_000,
    "checkpoint__save_interval": 1,
    "checkpoint__save_interval_updates": 0,
    "model__freeze_finetune_updates": 4,
    "model__feature_grad_mult": 1.0,
    "model__mask_prob": 0.2,
    "model__mask_channel_prob": 0.1,
    "model__mask_length": 2,
}


def write_corpus(folder, same_length):
    """The data of tests that run YAML files, with one transcript that cannot be learned, so that errors remain."""
    write_data(folder)
    lines = (folder / "valid.ltr").read_text().splitlines()
    (folder / "valid.ltr").write_text("\n".join([*lines[:3], "C B | A B C |"]) + "\n")
    if same_length:
        corpus = Corpus(folder)
        for n in range(4):
            corpus.add(f"same{n}.wav", 9600)
        for split in ("train", "valid"):
            corpus.manifest(f"{split}.tsv")
    return folder


@pytest.fixture(scope="module", params=[1, 2])
def run(request, tmp_path_factory):
    """``(data, run, what each validation logged)`` of a training from a checkpoint of version 1 or 2, now gone.

    Recordings of 1.0 are of several lengths: its one positional convolution here sees padding as zeros, as it sees what
    lies beyond the end of a recording alone. (With more convolutions, as in the recipes, the second sees what the first
    made of padding.) Those of 2.0 have one length, because the features there are not zero in padding, as upstream's.
    """
    two = request.param == 2
    folder = write_corpus(tmp_path_factory.mktemp("ctc"), same_length=two)
    version, own = ("_v2", {}) if two else ("", {"model__pos_conv_depth": 1})
    pretrained, out = folder / "pretrained", folder / "out"
    train(scaled_down(EXAMPLES / f"base_librispeech{version}.yaml", folder, pretrained, **own))
    recipe = EXAMPLES / f"ctc_base_100h{version}.yaml"
    cfg = scaled_down(recipe, folder, out, pretrained / "checkpoint_last.pt", **OVERFIT)
    cfg.lr_scheduler = {"_name": "fixed"}
    with logged("valid") as lines:
        train(cfg)
    shutil.rmtree(pretrained)
    return folder, out, lines


def test_every_validation_logs_both_rates(run):
    _, _, lines = run
    assert len(lines) == EPOCHS
    words, letters = ([float(line[f"valid_{name}"]) for line in lines] for name in ("wer", "uer"))
    # whole errors of 7 words and 21 letters, over all batches together
    for rates, total in ((words, 7), (letters, 21)):
        assert all(abs(rate * total / 100 - round(rate * total / 100)) < 1e-3 for rate in rates), rates
    # it learns
    assert min(letters) < 70 < letters[0]
    assert min(words) < 90 < words[0]


def test_the_best_checkpoint_is_that_of_the_lowest_word_error_rate(run):
    _, out, lines = run
    words = [float(line["valid_wer"]) for line in lines]
    state = read_checkpoint(out / "checkpoint_best.pt")
    assert state["extra_state"]["best"] == state["extra_state"]["val_loss"] == min(words)
    # of equal ones fairseq keeps the latest
    assert state["extra_state"]["train_iterator"]["epoch"] - 1 <= len(words)
    assert read_checkpoint(out / "checkpoint_last.pt")["extra_state"]["val_loss"] == words[-1]


def test_rates_are_those_of_single_recordings(run, tmp_path):
    """Validation sums over batches of padded recordings; these are scored one by one, by another implementation."""
    folder, out, lines = run
    best = min(lines, key=lambda line: float(line["valid_wer"]))
    path, data = out / "checkpoint_best.pt", folder / "valid.tsv"
    assert main(["eval-ctc", str(path), str(data), "--device", "cpu", "--json", str(tmp_path / "n.json")]) == 0
    assert json.loads((tmp_path / "n.json").read_text())["wer"] == pytest.approx(float(best["valid_wer"]), abs=1e-3)

    loaded = load_model(path)
    utterances = Utterances(data, loaded.sample_rate, loaded.normalize)
    errors = 0
    for n, text in enumerate((folder / "valid.ltr").read_text().splitlines()):
        source = torch.from_numpy(normalise(utterances.read(n)))[None]
        with torch.no_grad():
            output = loaded.model(source=source, padding_mask=torch.zeros_like(source, dtype=torch.bool))
        found = [loaded.symbols[i] for i in output["encoder_out"][:, 0].argmax(-1).unique_consecutive() if i != 0]
        # fairseq counts the word boundaries as letters, the one after the last word, too
        errors += Levenshtein.distance(found, text.split())
    at_best = [line for line in lines if line["valid_wer"] == best["valid_wer"]]
    assert any(100 * errors / 21 == pytest.approx(float(line["valid_uer"]), abs=1e-3) for line in at_best)


def test_loads_and_validates_without_the_pretrained_file_and_the_training_data(run, tmp_path):
    folder, out, lines = run
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(out / "checkpoint_best.pt")])
    state = read_checkpoint(out / "checkpoint_best.pt")["model"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # the dictionary is in the checkpoint
    data = tmp_path / "data"
    data.mkdir()
    for name in ("valid.tsv", "valid.ltr"):
        shutil.copy(folder / name, data / name)
    found = validated(out / "checkpoint_best.pt", data, "d2v_audio_finetuning", "valid", max_tokens=12_000)
    assert found["wer"] == min(float(line["valid_wer"]) for line in lines)
