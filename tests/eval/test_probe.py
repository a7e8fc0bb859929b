"""Probes: features that know score high, features that do not score nothing, and the command prints both."""

import json

import numpy as np
import pytest
import soundfile
from tiny_speech import SAMPLE_RATE

from d2v_plugin.cli.main import main
from d2v_plugin.errors import UserError
from d2v_plugin.eval.load import load_model
from d2v_plugin.eval.probe import Collected, collect, format_table, score_layers, scored_letters
from d2v_plugin.eval.utterances import Utterances

LETTERS = "abcd"


def synthetic(seed, recordings=40):
    """Every frame is one letter. Layer 0 is noise, layer 1 holds the letter in a rotated one-hot code."""
    generator = np.random.default_rng(seed)
    rotation = np.linalg.qr(np.random.default_rng(9).standard_normal((6, 6)))[0]
    frames, groups, targets, texts, durations, sums = {0: [], 1: []}, [], [], [], [], {0: [], 1: []}
    for n in range(recordings):
        letters = generator.integers(0, 4, generator.integers(5, 30))
        code = np.eye(6)[letters] @ rotation
        noise = generator.standard_normal(code.shape)
        for layer, values in ((0, noise), (1, code + 0.01 * noise)):
            frames[layer].append(values)
            sums[layer].append(values.sum(0))
        groups.append(np.full(len(letters), n))
        targets.append(np.eye(6)[letters][:, :3])
        texts.append("".join(LETTERS[i] for i in letters))
        durations.append(len(letters))
    stacked = {layer: np.concatenate(parts) for layer, parts in frames.items()}
    summed = {layer: np.stack(parts) for layer, parts in sums.items()}
    found = Collected(
        stacked,
        np.concatenate(groups),
        np.concatenate(targets),
        summed,
        np.array(durations, float),
        np.arange(recordings),
    )
    return found, texts


def test_informed_layer_beats_noise():
    (train, train_texts), (test, test_texts) = synthetic(0), synthetic(1)
    noise, informed = score_layers(train, test, (train_texts, test_texts))
    assert informed.mfcc > 0.99 and informed.letters > 0.95
    assert abs(noise.mfcc) < 0.05 and noise.letters < 0.2
    assert 0 < informed.letters_error < 0.05


def test_without_labels():
    train, test = synthetic(0)[0], synthetic(1)[0]
    score = score_layers(train, test, None)[1]
    assert score.letters is None and score.mfcc > 0.99
    assert "-" in format_table([score], None)


def test_rare_letters_are_left_out():
    assert scored_letters(["ab z"] * 5, ["ab"] * 5) == ["a", "b"]
    assert scored_letters(["ab"] * 5, ["ab"] * 4) == []


def test_too_few_recordings():
    with pytest.raises(UserError, match="at least 10 training and 2 test recordings, got 5 and 5"):
        score_layers(synthetic(0, 5)[0], synthetic(1, 5)[0], None)


def test_sums_and_targets_follow_the_recordings(corpus, pretrained):
    loaded = load_model(pretrained)
    found = collect(loaded, Utterances(corpus.manifest, SAMPLE_RATE, True), [0, 3], 2.0)
    assert sorted(found.indices) == list(range(8)) and len(found.groups) == found.durations.sum()
    for position, index in enumerate(found.indices):
        rows = found.groups == index
        assert rows.sum() == found.durations[position]
        for layer in (0, 3):
            np.testing.assert_allclose(
                found.frames[layer][rows].sum(0), found.sums[layer][position], rtol=1e-3, atol=1e-3
            )
    assert found.targets.shape == (len(found.groups), 12)


def write_many(folder, name, count, seed):
    """Recordings whose letters are pitches: what the probe can find is in the sound."""
    generator = np.random.default_rng(seed)
    rows, labels = [str(folder)], []
    for n in range(count):
        letters = generator.integers(0, 4, generator.integers(3, 9))
        wave = np.concatenate([np.sin(2 * np.pi * 300 * (2 + i) * np.arange(800) / SAMPLE_RATE) for i in letters])
        soundfile.write(folder / f"{name}{n}.wav", 0.3 * wave, SAMPLE_RATE)
        rows.append(f"{name}{n}.wav\t{len(wave)}")
        labels.append(" ".join(LETTERS[i] for i in letters) + " |")
    (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    (folder / f"{name}.ltr").write_text("\n".join(labels) + "\n")
    return folder / f"{name}.tsv"


def test_command(tmp_path, pretrained, capsys):
    train, test = write_many(tmp_path, "train", 40, 0), write_many(tmp_path, "test", 12, 1)
    arguments = ["probe", str(pretrained), str(train), str(test), "--device", "cpu", "--untrained"]
    assert main([*arguments, "--json", str(tmp_path / "p.json")]) == 0
    printed = capsys.readouterr().out
    assert "MFCC R2, untrained" in printed and "fitted on 40 recordings" in printed
    scores = json.loads((tmp_path / "p.json").read_text())
    for name in ("trained", "untrained"):
        assert [row["layer"] for row in scores[name]] == [0, 1, 2, 3]
        # even random convolutions tell four tones apart
        assert all(row["mfcc"] > 0.3 for row in scores[name])
    assert scores["trained"] != scores["untrained"]
    (tmp_path / "test.ltr").unlink()
    with test.open("a") as file:
        file.write("gone.wav\t0\n")
    assert main(["probe", str(pretrained), str(train), str(test), "--layers", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "no letters" in printed and "untrained" not in printed
    assert f"{test}: 1 of 13 entries left out (1 with 0 frames)" in printed
