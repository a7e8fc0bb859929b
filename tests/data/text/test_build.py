"""``d2v text``: raw text to a folder that fairseq trains on, compared with fairseq-preprocess, and its mistakes."""

import gzip
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
from fairseq.data import Dictionary
from fairseq.data.data_utils import load_indexed_dataset
from fairseq.options import get_preprocessing_parser
from fairseq_cli import preprocess
from prose import documents, write_documents

from d2v_plugin.cli.main import main
from d2v_plugin.data.text import build as text_build
from d2v_plugin.data.text import encode as text_encode
from d2v_plugin.data.text.binary import open_tokens
from d2v_plugin.data.text.build import BuildOptions, build
from d2v_plugin.data.text.check import check_folder
from d2v_plugin.data.text.pieces import load_pieces
from d2v_plugin.errors import UserError

# every character gets a piece, so that text comes back
WHOLE = ("--character-coverage", 1)
FILES = ["dict.txt", "sentencepiece.model", "train.bin", "train.idx", "valid.bin", "valid.idx"]


@pytest.fixture
def text(tmp_path):
    return write_documents(tmp_path / "text" / "a.txt", documents(60))


def run(*words):
    return main(["text", *map(str, words)])


def built(text, dest, *more):
    assert run("build", text, "--dest", dest, "--vocab-size", 90, "--valid-share", 0.2, *WHOLE, *more) == 0
    return dest


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def decoded(folder, split):
    """Documents of a split as lists of lines, read by fairseq's own reader and dictionary."""
    dictionary = Dictionary.load(str(folder / "dict.txt"))
    processor = load_pieces(folder / "sentencepiece.model")
    found = [[]]
    for tokens in load_indexed_dataset(str(folder / split)):
        assert tokens[-1] == dictionary.eos()
        if len(tokens) == 1:
            found.append([])
        else:
            found[-1].append(processor.decode(dictionary.string(tokens).split()))
    return found


def test_text_comes_back(text, tmp_path, capsys):
    out = built(text, tmp_path / "out")
    assert sorted(contents(out)) == FILES
    train, valid = decoded(out, "train"), decoded(out, "valid")
    assert sorted(train + valid) == sorted(documents(60)) and len(valid) > 5
    order = {tuple(document): place for place, document in enumerate(documents(60))}
    assert [order[tuple(document)] for document in train] == sorted(order[tuple(document)] for document in train)
    printed = capsys.readouterr().out
    assert f"{out}/valid.bin: {len(valid)} documents" in printed and "0.00 % unknown" in printed


def test_bytes_are_fairseq_preprocesss(text, tmp_path):
    out = built(text, tmp_path / "out")
    processor = load_pieces(out / "sentencepiece.model")
    for split in ("train", "valid"):
        found = ["\n".join(lines) for lines in decoded(out, split)]
        lines = "\n\n".join(found).split("\n")
        encoded = (" ".join(processor.encode(line, out_type=str)) for line in lines)
        (tmp_path / f"{split}.spm").write_text("".join(f"{line}\n" for line in encoded))
    options = ["--only-source", "--trainpref", tmp_path / "train.spm", "--validpref", tmp_path / "valid.spm"]
    options += ["--srcdict", out / "dict.txt", "--destdir", tmp_path / "theirs"]
    handlers = list(preprocess.logger.handlers)
    preprocess.main(get_preprocessing_parser().parse_args(list(map(str, options))))
    preprocess.logger.handlers = handlers  # fairseq leaves one with an open file
    for name in ("train.bin", "train.idx", "valid.bin", "valid.idx", "dict.txt"):
        assert (tmp_path / "theirs" / name).read_bytes() == (out / name).read_bytes()


def test_counts_in_the_dictionary_are_the_training_parts(text, tmp_path):
    out = built(text, tmp_path / "out")
    dictionary = Dictionary.load(str(out / "dict.txt"))
    counted = np.bincount(open_tokens(out / "train").tokens, minlength=len(dictionary))
    assert counted[4:].tolist() == dictionary.count[4:] and counted[4:].sum() > 1000


def test_nothing_depends_on_files_workers_or_chance(text, tmp_path, monkeypatch):
    alone = contents(built(text, tmp_path / "alone"))
    assert contents(built(text, tmp_path / "again")) == alone
    found = documents(60)
    for number in range(3):
        part = "\n\n".join("\n".join(lines) for lines in found[20 * number : 20 * number + 20])
        with gzip.open(tmp_path / "text" / f"b{number}.gz", "wt") as file:
            file.write(part)
    text.unlink()
    monkeypatch.setattr(text_encode, "BATCH_BYTES", 2000)  # enough batches to keep two processes waiting
    assert contents(built(tmp_path / "text", tmp_path / "two", "--workers", 2)) == alone
    other = contents(built(tmp_path / "text", tmp_path / "other", "--seed", 1))
    assert other["valid.bin"] != alone["valid.bin"]


def test_memory_holds_a_few_batches(tmp_path, monkeypatch):
    """What waits is bounded by the number of processes, not by the corpus."""
    monkeypatch.setattr(text_encode, "BATCH_BYTES", 300)
    write_documents(tmp_path / "a.txt", documents(80))
    build(BuildOptions([str(tmp_path / "a.txt")], str(tmp_path / "out"), vocab_size=90))
    taken = []

    def watched(found):
        for batch in found:
            taken.append(batch)
            yield batch

    symbols = text_build.read_symbols(tmp_path / "out" / "dict.txt")
    model = (tmp_path / "out" / "sentencepiece.model").read_bytes()
    corpus = text_build.Corpus([tmp_path / "a.txt"])
    bad = text_build.BadLines(0)
    results = text_encode.encode_batches(
        watched(text_encode.batches(corpus, lambda key: "train", bad)), model, symbols, workers=2
    )
    for count, _ in enumerate(results, 1):
        assert len(taken) <= count + 2 * text_encode.AHEAD + 1
    assert count == len(taken) > 20


def test_a_killed_process_is_one_line(text, tmp_path, monkeypatch):
    monkeypatch.setattr(text_encode, "BATCH_BYTES", 300)
    out = built(text, tmp_path / "out")

    def deadly(found):
        for number, batch in enumerate(found):
            if number == 3:
                for process in multiprocessing.active_children():
                    process.kill()
            yield batch

    symbols = text_build.read_symbols(out / "dict.txt")
    corpus, bad = text_build.Corpus([text]), text_build.BadLines(0)
    found = deadly(text_encode.batches(corpus, lambda key: "train", bad))
    with pytest.raises(UserError, match="use fewer --workers"):
        list(text_encode.encode_batches(found, (out / "sentencepiece.model").read_bytes(), symbols, workers=2))


def test_a_small_sample_trains_the_model(text, tmp_path):
    out = built(text, tmp_path / "out", "--train-lines", 200)
    assert (out / "sentencepiece.model").read_bytes() != (
        built(text, tmp_path / "all") / "sentencepiece.model"
    ).read_bytes()
    assert sorted(decoded(out, "train") + decoded(out, "valid")) == sorted(documents(60))


def test_named_validation_text_and_a_test_share(text, tmp_path):
    held_out = write_documents(tmp_path / "held" / "v.txt", documents(3, seed=9))
    assert run("build", text, "--valid", held_out.parent, "--dest", tmp_path / "out", "--vocab-size", 90, *WHOLE) == 0
    assert decoded(tmp_path / "out", "valid") == documents(3, seed=9)
    assert decoded(tmp_path / "out", "train") == documents(60)
    out = built(text, tmp_path / "three", "--test-share", 0.1)
    assert sorted(sum((decoded(out, s) for s in ("train", "valid", "test")), [])) == sorted(documents(60))


def test_a_model_that_is_there_is_taken(text, tmp_path):
    first = built(text, tmp_path / "first")
    other = write_documents(tmp_path / "other.txt", documents(9, seed=5))
    model, numbers = first / "sentencepiece.model", first / "dict.txt"
    assert run("build", other, "--model", model, "--dest", tmp_path / "second", "--valid-share", 0) == 0
    assert (tmp_path / "second" / "sentencepiece.model").read_bytes() == model.read_bytes()
    words = ("build", other, "--model", model, "--dict", numbers, "--dest", tmp_path / "third", "--valid-share", 0)
    assert run(*words) == 0
    second, third = contents(tmp_path / "second"), contents(tmp_path / "third")
    assert third["train.bin"] == second["train.bin"] and third["dict.txt"] == numbers.read_bytes()
    assert decoded(tmp_path / "third", "train") == documents(9, seed=5)


def test_encode_more_text(text, tmp_path, capsys):
    out = built(text, tmp_path / "out")
    more = write_documents(tmp_path / "more.txt", documents(4, seed=7))
    assert run("encode", more, "--data", out, "--name", "test") == 0
    assert decoded(out, "test") == documents(4, seed=7)
    capsys.readouterr()
    assert run("encode", more, "--data", out, "--name", "test") == 2
    assert "exists; choose another --name" in capsys.readouterr().err
    assert run("encode", more, "--data", out, "--name", "test", "--dest", tmp_path / "elsewhere") == 0
    assert (tmp_path / "elsewhere" / "test.bin").read_bytes() == (out / "test.bin").read_bytes()


def test_bad_lines_are_left_out_and_told(text, tmp_path, capsys):
    whole = text.read_bytes()
    text.write_bytes(b"caf\xe9 latin\n" + whole.replace(b"\n\n", b"\nnul \0 byte\n\n", 1))
    out = built(text, tmp_path / "out")
    told = capsys.readouterr()
    assert sorted(decoded(out, "train") + decoded(out, "valid")) == sorted(documents(60))
    assert "left out 2 lines: 1 not UTF-8, 1 with NUL bytes" in told.out
    assert f"left out {text}:1: not UTF-8" in told.err and f"{text}:10: with NUL bytes" in told.err
    assert run("build", text, "--dest", tmp_path / "no", "--vocab-size", 90, "--max-bad-lines", 1) == 2
    assert "2 lines so far cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_build_leaves_nothing(text, tmp_path, monkeypatch, workers):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(text_build, "write_symbols", interrupted)
    options = ("--dest", tmp_path / "out", "--vocab-size", 90, "--workers", workers)
    assert run("build", text, *options) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_an_empty_folder_may_be_there(text, tmp_path):
    (tmp_path / "out").mkdir()
    mode = (tmp_path / "out").stat().st_mode
    assert built(text, tmp_path / "out").stat().st_mode == mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "text"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dest", "{text}"), "is not empty"),
        (("--dest", "{text}/a.txt"), "is a file"),
        (("--vocab-size", 9000), "--vocab-size 9000 is more than this text supports"),
        (("--vocab-size", 4), "--vocab-size must be at least 5"),
        (("--valid-share", 1), "--valid-share and --test-share are portions"),
        (("--valid-share", "nan"), "--valid-share and --test-share are portions"),
        (("--valid", "{text}", "--valid-share", 0.1), "two ways to get valid.bin"),
        (("--valid", "{text}/no"), "does not exist"),
        (("--ext", "md"), "ends with .md"),
        (("--workers", 0), "--workers must be at least 1"),
        (("--document-lines", 0), "--document-lines must be at least 1"),
        (("--max-bad-lines", -2), "--max-bad-lines must be -1"),
        (("--character-coverage", 0), "--character-coverage must be above 0"),
        (("--dict", "x"), "name that model with --model"),
        (("--model", "x", "--lowercase"), "--lowercase is a property of the model"),
        (("--model", "{text}/a.txt"), "not a sentencepiece model"),
        (("--model", "{text}/no.model"), "does not exist"),
    ],
)
def test_wrong_options_are_one_line(text, tmp_path, capsys, options, message):
    words = [str(word).format(text=text.parent) for word in options]
    dest = [] if "--dest" in words else ["--dest", tmp_path / "out"]
    size = [] if "--vocab-size" in words else ["--vocab-size", 90]
    assert run("build", text.parent, *dest, *size, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("d2v: error: ") and message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the files are empty"),
        (b"\n \n\t\n", "nothing but blank lines"),
        (b"\xff\xfea\0b\0\n\nx\xff\n" * 9, "none is UTF-8 text"),
        (b"one sentence\nanother one", "put a blank line between documents"),
    ],
)
def test_useless_text_is_one_line(tmp_path, capsys, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    assert run("build", tmp_path / "a.txt", "--dest", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and not (tmp_path / "out").exists()


def test_check(text, tmp_path, capsys):
    out = built(text, tmp_path / "out")
    capsys.readouterr()
    assert run("check", out, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    valid = decoded(out, "valid")
    assert report["symbols"] == 90 and report["splits"]["valid"]["documents"] == len(valid)
    assert report["splits"]["valid"]["sequences"] == sum(map(len, valid)) + len(valid) - 1
    assert run("check", out) == 0
    assert f"{len(valid)} documents" in capsys.readouterr().out
    (out / "valid.bin").write_bytes(b"x")
    rows = (out / "dict.txt").read_text().splitlines(keepends=True)
    (out / "dict.txt").write_text("".join(rows[:30]))
    assert run("check", out) == 1
    printed = capsys.readouterr().out
    assert "has 1 bytes where valid.idx announces" in printed and "dict.txt ends at 33" in printed


@pytest.mark.parametrize("what", ["folder", "dictionary", "files"])
def test_check_without_data_is_one_line(tmp_path, what):
    if what == "files":
        (tmp_path / "dict.txt").write_text("a 1\n")
    with pytest.raises(UserError) as caught:
        check_folder(tmp_path / "no" if what == "folder" else tmp_path)
    assert "\n" not in str(caught.value)


def test_check_finds_the_wrong_model(text, tmp_path):
    out = built(text, tmp_path / "out")
    (out / "dict.txt").write_text("".join(f"word{n} 1\n" for n in range(90)))
    assert "put the model of this text there" in check_folder(out)["problems"][0]
