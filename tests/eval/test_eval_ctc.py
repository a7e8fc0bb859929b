"""The command: hypotheses, scores, references, bad recordings."""

import json
import sys

import pytest
import torch
from tiny_speech import SAMPLE_RATE, TEXTS, write_ctc

from d2v_plugin.cli.main import main
from d2v_plugin.eval.ctc import symbols_to_text
from d2v_plugin.eval.load import load_model
from d2v_plugin.eval.utterances import Utterances, length_batches, normalise


def table(path):
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert rows[0] == ["id", "path", "reference", "hypothesis"]
    return rows[1:]


def run(checkpoint, corpus, *more):
    return main(["eval-ctc", str(checkpoint), str(corpus.manifest), "--device", "cpu", *map(str, more)])


def test_hypotheses_are_those_of_single_recordings(tmp_path, corpus, finetuned, capsys):
    out = tmp_path / "new" / "hyp.tsv"
    assert run(finetuned, corpus, "--out", out, "--json", tmp_path / "n.json") == 0
    rows = table(out)
    assert [row[:3] for row in rows] == [[f"u{n}", f"u{n}.wav", TEXTS[n]] for n in range(8)]
    loaded = load_model(finetuned)
    utterances = Utterances(corpus.manifest, SAMPLE_RATE, True)
    for n, row in enumerate(rows):
        source = torch.from_numpy(normalise(utterances.read(n)))[None]
        with torch.no_grad():
            logits = loaded.model(source=source, padding_mask=torch.zeros_like(source, dtype=torch.bool))["encoder_out"]
        best = logits[:, 0].argmax(-1)
        letters = [s for t, s in enumerate(best.tolist()) if s and (t == 0 or s != best[t - 1])]
        assert row[3] == symbols_to_text(loaded.symbols[s] for s in letters)
    assert len({row[3] for row in rows}) > 1
    printed = capsys.readouterr().out
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["recordings"] == 8 and numbers["characters"] == sum(map(len, TEXTS))
    assert f"WER {numbers['wer']:6.2f} %" in printed and f"CER {numbers['cer']:6.2f} %" in printed


def test_own_hypotheses_as_references_score_zero(tmp_path, corpus, finetuned):
    run(finetuned, corpus, "--out", tmp_path / "hyp.tsv")
    labels = tmp_path / "own.ltr"
    labels.write_text("".join(" ".join(row[3].replace(" ", "|")) + "\n" for row in table(tmp_path / "hyp.tsv")))
    assert run(finetuned, corpus, "--labels", labels, "--json", tmp_path / "n.json") == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["wer"] == 0 and numbers["cer"] == 0


def test_without_labels_only_hypotheses(tmp_path, corpus, finetuned, capsys):
    (corpus.folder / "test.ltr").unlink()
    assert run(finetuned, corpus) == 0
    printed = capsys.readouterr().out
    assert "nothing is scored" in printed and "WER" not in printed and "u3\t" in printed


def test_labels_of_another_length(corpus, finetuned, capsys):
    with (corpus.folder / "test.ltr").open("a") as file:
        file.write("a |\n")
    assert run(finetuned, corpus) == 2
    error = capsys.readouterr().err
    assert "has 9 lines" in error and "has 8 recordings" in error and error.count("\n") == 1


def test_bad_recordings_are_skipped_counted_and_limited(tmp_path, corpus, finetuned, capsys):
    (corpus.folder / "wav" / "u2.wav").write_bytes(b"not audio at all")
    (corpus.folder / "wav" / "u5.wav").unlink()
    assert run(finetuned, corpus, "--out", tmp_path / "hyp.tsv") == 0
    assert "2 of 8 files were unusable and skipped (1 missing, 1 not audio)" in capsys.readouterr().out
    rows = table(tmp_path / "hyp.tsv")
    assert [row[0] for row in rows] == [f"u{n}" for n in (0, 1, 3, 4, 6, 7)] and rows[2][2] == TEXTS[3]
    assert run(finetuned, corpus, "--max-bad", 1) == 2
    assert "--max-bad allows 1" in capsys.readouterr().err


def test_entries_left_out_by_their_size_are_told(tmp_path, corpus, finetuned, capsys):
    lines = corpus.manifest.read_text().splitlines()
    lines[3] = "u2.wav\t0"
    corpus.manifest.write_text("\n".join(lines) + "\n")
    assert run(finetuned, corpus, "--json", tmp_path / "n.json") == 0
    assert f"{corpus.manifest}: 1 of 8 entries left out (1 with 0 frames)\n" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["recordings"] == 7 and numbers["left_out_by_length"] == {"with 0 frames": 1}


def test_weights_that_are_not_numbers_are_one_line(tmp_path, corpus, finetuned, capsys):
    state = torch.load(finetuned, weights_only=False)
    state["model"]["w2v_encoder.proj.bias"][2] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    assert run(tmp_path / "nan.pt", corpus) == 2
    error = capsys.readouterr().err
    assert "are NaN or infinite (first in w2v_encoder.proj.bias)" in error and error.count("\n") == 1


def test_pretraining_checkpoint_is_refused_in_one_line(corpus, pretrained, capsys):
    assert run(pretrained, corpus) == 2
    error = capsys.readouterr().err
    assert "d2v: error:" in error and "d2v features" in error and error.count("\n") == 1


def test_beam_search(tmp_path, corpus, finetuned):
    lexicon, lm = tmp_path / "lexicon.txt", tmp_path / "lm.arpa"
    words = sorted({word for text in TEXTS for word in text.split()})
    lexicon.write_text("".join(f"{word}\t{' '.join(word)} |\n" for word in words))
    grams = "".join(f"-1.0\t{word}\n" for word in [*words, "<s>", "</s>", "<unk>"])
    counts = f"ngram 1={len(words) + 3}\nngram 2=1\n"
    pair = f"-0.3\t{words[0]} {words[1]}\n"
    lm.write_text(f"\\data\\\n{counts}\n\\1-grams:\n{grams}\n\\2-grams:\n{pair}\n\\end\\\n")
    assert run(finetuned, corpus, "--lexicon", lexicon, "--lm", lm, "--beam", 20, "--out", tmp_path / "h.tsv") == 0
    found = [row[3].split() for row in table(tmp_path / "h.tsv")]
    assert all(word in words for text in found for word in text) and any(found)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lm", "x.arpa"], "needs --lexicon"),
        (["--beam", "0"], "at least 1"),
        (["--max-seconds", "-1"], "negative"),
        (["--max-seconds", "nan"], "--max-seconds"),
        (["--max-bad", "-2"], "--max-bad must be -1"),
        (["--device", "meta"], "meta is not supported; use auto, cpu, cuda or cuda:N"),
        (["--device", "x"], "x is not a device; use auto, cpu, cuda or cuda:N"),
    ],
)
def test_options_that_make_no_sense(corpus, finetuned, capsys, more, message):
    assert run(finetuned, corpus, *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_group_norm_note_and_single_recordings(tmp_path, corpus, capsys):
    path = write_ctc(tmp_path / "g.pt", corpus.folder / "dict.ltr.txt", mode="default")
    assert run(path, corpus) == 0
    assert "--max-seconds 0" in capsys.readouterr().out
    assert run(path, corpus, "--max-seconds", 0) == 0
    assert "--max-seconds 0" not in capsys.readouterr().out


def test_missing_manifest(tmp_path, corpus, finetuned, capsys):
    corpus.manifest.unlink()
    assert run(finetuned, corpus) == 2
    assert "this manifest does not exist" in capsys.readouterr().err


def test_length_batches():
    sizes = [5, 1, 9, 4, 20, 4]
    batches = length_batches(sizes, 12)
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert batches == [[4], [2], [0, 3], [5, 1]]
    assert length_batches(sizes, 0) == [[4], [2], [0], [3], [5], [1]]
    assert all(len(batch) == 1 or max(sizes[i] for i in batch) * len(batch) <= 12 for batch in batches)


def test_help_needs_no_torch():
    # a fresh interpreter is what a user has
    import subprocess

    code = (
        "import argparse, sys\n"
        "from d2v_plugin.cli import eval_ctc, features, plot, probe\n"
        "subparsers = argparse.ArgumentParser().add_subparsers()\n"
        "[m.add_parser(subparsers) for m in (eval_ctc, features, plot, probe)]\n"
        "assert not {'torch', 'fairseq', 'matplotlib', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
