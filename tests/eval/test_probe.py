"""Probes: features that know score high, features that do not score nothing, and the command prints both."""

import json

import numpy as np
import pytest
import soundfile
from tiny_speech import SAMPLE_RATE

from d2v_plugin.cli.main import main
from d2v_plugin.errors import UserError
from d2v_plugin.eval.align import AlignedLetters
from d2v_plugin.eval.features import iterate_features
from d2v_plugin.eval.load import load_model
from d2v_plugin.eval.probe import Collected, Rows, collect, format_table, letter_chance, score_layers
from d2v_plugin.eval.utterances import Utterances

LETTERS = "abcd"


def synthetic(seed, recordings=40):
    """Every frame is one letter. Layer 0 is noise, layer 1 holds the letter in a rotated one-hot code."""
    generator = np.random.default_rng(seed)
    rotation = np.linalg.qr(np.random.default_rng(9).standard_normal((6, 6)))[0]
    lengths = generator.integers(5, 30, recordings)
    letters = generator.choice(4, lengths.sum(), p=[0.4, 0.3, 0.2, 0.1])
    noise = generator.standard_normal((len(letters), 6))
    frames = {0: noise, 1: np.eye(6)[letters] @ rotation + 0.01 * noise}
    groups = np.repeat(np.arange(recordings), lengths)
    return Collected(
        Rows(frames, groups, np.eye(6)[letters][:, :3]), Rows(frames, groups, np.array([*LETTERS])[letters])
    )


def test_informed_layer_beats_noise():
    train, test = synthetic(0), synthetic(1)
    noise, informed = score_layers(train, test, letters=True)
    assert informed.mfcc > 0.99 and informed.letters == 1 and informed.letters_error == 0
    chance = letter_chance(train.letters, test.letters)
    assert chance == (test.letters.targets == "a").mean()
    # binomial: letters here are independent
    expected = np.sqrt(chance * (1 - chance) / len(test.letters.groups))
    assert abs(noise.mfcc) < 0.05 and abs(noise.letters - chance) < 3 * expected
    assert noise.letters_error == pytest.approx(expected, rel=0.3)
    # the same from nearest neighbours, to which noise tells less than the mean does
    assert informed.mfcc_knn > 0.99 and informed.letters_knn == 1
    assert noise.mfcc_knn < 0.05 and noise.letters_knn < chance + 3 * expected


def test_a_letter_never_fitted_counts_as_wrong():
    train, test = synthetic(0), synthetic(1)
    test.letters.targets[::2] = "z"
    assert score_layers(train, test, letters=True)[1].letters == pytest.approx(0.5, abs=0.01)


def test_without_an_alignment():
    score = score_layers(synthetic(0), synthetic(1), letters=False)[1]
    assert score.letters is None and score.letters_knn is None and score.mfcc > 0.99 and score.mfcc_knn > 0.99
    assert "letters" not in format_table([score], None)


def test_too_few_recordings():
    with pytest.raises(UserError, match="at least 10 training and 2 test recordings, got 5 and 5"):
        score_layers(synthetic(0, 5), synthetic(1, 5), letters=False)
    train, test = synthetic(0), Collected(synthetic(1).sound, None)
    with pytest.raises(UserError, match="probing letters needs .* got 40 and 0; transcripts must fit"):
        score_layers(train, test, letters=True)


def test_frames_of_letters_are_those_nearest_in_time(corpus, pretrained):
    loaded = load_model(pretrained)
    utterances = Utterances(corpus.manifest, SAMPLE_RATE, True)
    # as a model with other frames would give them: up to 0.4 frames off; the last lies past the end
    centres = {2: np.array([0.4, 1.6, 7.0]), 5: np.array([3.1, 1e6])}
    seconds = {i: (c * loaded.stride + (loaded.receptive_field - 1) / 2) / SAMPLE_RATE for i, c in centres.items()}
    aligned = {i: AlignedLetters("abc"[: len(s)], s) for i, s in seconds.items()}
    found = collect(loaded, utterances, [0, 3], 2.0, aligned)
    features = dict(iterate_features(loaded, utterances, [0, 3], 2.0))
    for index, nearest in ((2, [0, 2, 7]), (5, [3, -1])):
        rows = found.letters.groups == index
        assert "".join(found.letters.targets[rows]) == aligned[index].letters
        for layer in (0, 3):
            expected = features[index][layer].numpy()[nearest]
            np.testing.assert_array_equal(found.letters.frames[layer][rows], expected)
    assert len(found.letters.groups) == 5
    assert found.sound.recordings == 8 and found.sound.targets.shape == (len(found.sound.groups), 12)


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
    arguments = ["probe", str(pretrained), str(train), str(test), "--device", "cpu"]
    assert main([*arguments, "--untrained", "--json", str(tmp_path / "p.json")]) == 0
    printed = capsys.readouterr().out
    assert "MFCC R2, untrained" in printed and "fitted on 40 recordings" in printed and "letters" not in printed
    scores = json.loads((tmp_path / "p.json").read_text())
    for name in ("trained", "untrained"):
        assert [row["layer"] for row in scores[name]] == [0, 1, 2, 3]
        # even random convolutions tell four tones apart
        assert all(row["mfcc"] > 0.3 and row["letters"] is None for row in scores[name])
        assert all(row["mfcc_knn"] > 0.3 and row["letters_knn"] is None for row in scores[name])
    assert scores["trained"] != scores["untrained"] and scores["chance"] is None
    with test.open("a") as file:
        file.write("gone.wav\t0\n")
    assert main([*arguments, "--layers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "untrained" not in printed
    assert f"{test}: 1 of 13 entries left out (1 with 0 frames)" in printed


def test_command_with_letters(tmp_path, pretrained, finetuned, capsys):
    train, test = write_many(tmp_path, "train", 40, 0), write_many(tmp_path, "test", 12, 1)
    labels = test.with_suffix(".ltr").read_text().splitlines()
    test.with_suffix(".ltr").write_text("\n".join(["a " * 99 + "|", *labels[1:]]) + "\n")
    arguments = ["probe", str(pretrained), str(train), str(test), "--device", "cpu", "--align", str(finetuned)]
    assert main([*arguments, "--untrained", "--json", str(tmp_path / "p.json")]) == 0
    printed = capsys.readouterr().out
    assert f"{test}: 1 recordings too short for their transcripts: no letters" in printed
    assert "letters right, untrained" in printed
    scores = json.loads((tmp_path / "p.json").read_text())
    letters = "".join(labels[1:])
    counts = [letters.count(letter) / sum(letters.count(a) for a in LETTERS) for letter in LETTERS]
    assert any(scores["chance"] == pytest.approx(count) for count in counts)
    for name in ("trained", "untrained"):
        # tones are told apart even where the frames come from an aligner with random weights
        assert all(scores["chance"] + 0.1 < row["letters"] <= 1 for row in scores[name])
        assert all(0 < row["letters_error"] < 0.2 for row in scores[name])
        assert all(scores["chance"] < row["letters_knn"] <= 1 for row in scores[name])
    test.with_suffix(".ltr").unlink()
    assert main(arguments) == 2
    assert f"--align needs {test.with_suffix('.ltr')}" in capsys.readouterr().err
    assert main([*arguments[:-1], str(pretrained)]) == 2
    assert "pre-training checkpoint" in capsys.readouterr().err
