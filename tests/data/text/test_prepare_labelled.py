"""Labelled passages of the text demo become what sentence prediction trains on."""

import importlib
import sys

import pytest
import tiny_glue
from fairseq.data import Dictionary, data_utils
from prose import documents, write_documents
from tiny_training import ROOT, train

from d2v_plugin.data.text.build import BuildOptions, build
from d2v_plugin.eval.text_features import Passage
from d2v_plugin.eval.text_probe import FIT, SCORE, Example, write_examples

FOLDER = ROOT / "examples" / "text"
VERBS = ("listen", "wonder", "walk", "talk", "open", "answer")


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("prepare_labelled")
        sys.modules.pop("prepare_labelled", None)


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    """``text``: binarised; ``words.tsv``: words in passages; ``whole.tsv``: passages alone."""
    folder = tmp_path_factory.mktemp("prose")
    found = documents(30)
    named = [str(write_documents(folder / "text.txt", found))]
    build(BuildOptions(named, str(folder / "text"), valid=named, vocab_size=150), tell=tiny_glue.quiet)
    words, whole = [], []
    for number, lines in enumerate(found):
        side = SCORE if number % 3 == 0 else FIT
        for line in lines:
            passage = tuple(line.rstrip(".!?").lower().split())
            label = "verb" if any(word.startswith(VERBS) for word in passage) else "other"
            whole.append(Example(side, label, f"d.{number}", Passage(passage)))
            for place, word in enumerate(passage[:4]):
                label = "verb" if word.startswith(VERBS) else "other"
                if len(word) > 3 and len(passage) > 1:
                    words.append(Example(side, label, f"d.{number}", Passage(passage, place, place + 1)))
    write_examples(folder / "words.tsv", words)
    write_examples(folder / "whole.tsv", whole)
    return folder


def run(script, prose, table, dest, *more):
    return script.main([str(prose / table), "--data", str(prose / "text"), "--dest", str(dest), *more])


def test_words_and_their_passages(script, prose, tmp_path, capsys):
    assert run(script, prose, "words.tsv", tmp_path / "made", "--labels", "10") == 0
    assert "made/10: train: 10 samples" in capsys.readouterr().out
    text = Dictionary.load(str(prose / "text" / "dict.txt"))
    seen = {}
    for split in ("train", "valid", "test"):
        parts = [
            data_utils.load_indexed_dataset(str(tmp_path / "made/all" / f"input{k}" / split), text) for k in (0, 1)
        ]
        rows = [
            [text.string(part[n]).replace(" ", "").replace("▁", " ").strip() for part in parts]
            for n in range(len(parts[0]))
        ]
        assert all(word in passage.split() for word, passage in rows)
        seen[split] = {word for word, _ in rows}
    assert not seen["train"] & seen["valid"]
    labels = Dictionary.load(str(tmp_path / "made/10/label/dict.txt"))
    assert labels.symbols[labels.nspecial :] == ["other", "verb"]
    few = data_utils.load_indexed_dataset(str(tmp_path / "made/10/label/train"), labels)
    assert sorted(labels.string(few[n]) for n in range(len(few))) == ["other"] * 5 + ["verb"] * 5


def test_passages_alone_train_with_the_recipe_of_the_demo(script, prose, tmp_path):
    assert run(script, prose, "whole.tsv", tmp_path / "made" / "bin", "--max-positions", "64") == 0
    assert not (tmp_path / "made" / "bin" / "all" / "input1").exists()
    start = tiny_glue.pretrain(prose / "text", tmp_path / "pretrained")
    more = {"task__data": str(tmp_path / "made" / "bin" / "all"), "dataset__validate_interval_updates": 1}
    more |= {"dataset__valid_subset": "valid,test"}
    path = FOLDER / "finetune_demo.yaml"
    train(tiny_glue.small_run(path, tmp_path / "made", tmp_path / "run", pretrained=start, **more))
    assert (tmp_path / "run" / "checkpoint_best.pt").is_file()


def test_what_is_refused(script, prose, tmp_path, capsys):
    assert run(script, prose, "words.tsv", tmp_path / "made", "--labels", "1") == 2
    assert "--labels 1: there are 2 to " in capsys.readouterr().err
    assert run(script, prose, "none.tsv", tmp_path / "made") == 2
    assert "this probe does not exist" in capsys.readouterr().err
    write_examples(tmp_path / "one.tsv", [Example(FIT, "a", "d", Passage(("a", "word")))] * 3)
    assert script.main([str(tmp_path / "one.tsv"), "--data", str(prose / "text"), "--dest", str(tmp_path / "x")]) == 2
    assert "passages and no two labels" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
