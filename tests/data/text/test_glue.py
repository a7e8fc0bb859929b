"""GLUE's official files: columns, labels and quotation marks as they are, and one line for a file of the wrong task."""

import json

import glue_corpus
import numpy as np
import pytest
import tiny_glue
from fairseq.data import Dictionary, data_utils

from d2v_plugin.cli.main import main
from d2v_plugin.data.text.build import BuildOptions, build
from d2v_plugin.data.text.glue import TASKS, looks_like, task_named
from d2v_plugin.data.text.glue_files import Skipped, find_folder, read_task
from d2v_plugin.data.text.glue_prepare import prepare_task
from d2v_plugin.data.text.labelled import Sample, TextEncoder, cut, write_split
from d2v_plugin.errors import UserError

FOLDERS = {task.folder: task for task in TASKS.values()}
ROWS = {
    "CoLA": (("The boy who won the prize is my cousin.",), "1"),
    "MNLI": (("The river froze in January.", "In January the river was frozen."), "entailment"),
    "MRPC": (("The river froze in January.", "In January the river was frozen."), "1"),
    "QNLI": (("When did the river freeze?", "The river froze in January."), "entailment"),
    "QQP": (("When did the river freeze?", "Please tell me. When did the river freeze?"), "1"),
    "RTE": (("The river froze in January.", "In January the river was frozen."), "entailment"),
    "SST-2": (("a warm and funny film , full of life",), "1"),
    "STS-B": (("The river froze in January.", "In January the river was frozen."), 1.0),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder that `d2v text build` wrote."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("\n".join(glue_corpus.sentences()) + "\n")
    named = [str(folder / "text.txt")]
    build(BuildOptions(named, str(folder / "built"), valid=named, vocab_size=200), tell=tiny_glue.quiet)
    return folder / "built"


def read(folder, task, limit=100):
    return read_task(folder, task, Skipped(limit))


@pytest.mark.parametrize("name", FOLDERS)
def test_samples_of_each_task(name, tmp_path):
    folder, task = glue_corpus.write_task(tmp_path, name), FOLDERS[name]
    found = read(folder, task)
    assert found["train"][0] == Sample(*ROWS[name])
    assert len(found["train"]) == len(glue_corpus.rows(name))
    assert set(found) == ({"train", "valid", "valid1"} if name == "MNLI" else {"train", "valid"})
    labels = {sample.label for sample in found["train"]}
    assert labels == (set(task.classes) if task.classes else {1.0, 0.48, 0.04})
    assert find_folder(tmp_path, task) == find_folder(folder, task) == folder


def test_quotation_marks_are_characters(tmp_path):
    found = read(glue_corpus.write_task(tmp_path, "SST-2"), TASKS["sst_2"])["train"]
    assert found[4].texts == ('" beautiful from the first minute to the last',)
    assert len(found) == 8  # a CSV reader takes the rest of the file for one field


TESTS = {
    "CoLA": "index\tsentence\n0\tThey left.\n",
    "SST-2": "index\tsentence\n0\tthey left\n",
    "RTE": "index\tsentence1\tsentence2\n0\tThey left.\tThey went.\n",
    "QNLI": "index\tquestion\tsentence\n0\tWho left?\tThey left.\n",
    "QQP": "id\tquestion1\tquestion2\n0\tWho left?\tWho went?\n",
    "MRPC": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tThey left.\tThey went.\n",
    "STS-B": "\t".join(TASKS["sts_b"].header[:-1]) + "\n0\tg\tf\ty\t0\ta\tb\tThey left.\tThey went.\n",
}


@pytest.mark.parametrize("name", TESTS)
def test_tests_have_no_labels(name, tmp_path, text):
    folder = glue_corpus.write_task(tmp_path, name)
    (folder / "test.tsv").write_text(TESTS[name])
    found = read(folder, FOLDERS[name])["test"]
    assert len(found) == 1 and found[0].label is None
    prepare_task(folder, tmp_path / "bin", FOLDERS[name], TextEncoder.of_folder(text), tell=tiny_glue.quiet)
    assert (tmp_path / "bin" / "input0" / "test.bin").is_file()
    assert not list((tmp_path / "bin" / "label").glob("test*"))


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_written_is_what_fairseq_reads(name, tmp_path, text):
    folder, task = glue_corpus.write_task(tmp_path, name), FOLDERS[name]
    encoder = TextEncoder.of_folder(text)
    prepare_task(folder, tmp_path / "bin", task, encoder, tell=tiny_glue.quiet)
    samples = read(folder, task)["train"]
    for column in range(len(task.columns)):
        part = tmp_path / "bin" / f"input{column}"
        dictionary = Dictionary.load(str(part / "dict.txt"))
        dataset = data_utils.load_indexed_dataset(str(part / "train"), dictionary)
        spelt = dictionary.string(dataset[0]).replace(" ", "").replace("▁", " ").strip()
        assert spelt == samples[0].texts[column]
        assert dataset[0][-1] == dictionary.eos()
    label = tmp_path / "bin" / "label"
    if task.classes is None:
        values = [float(line) for line in (label / "train.label").read_text().split()]
        assert values == [sample.label for sample in samples]
        return
    labels = Dictionary.load(str(label / "dict.txt"))
    assert tuple(labels.symbols[labels.nspecial :]) == task.classes
    found = data_utils.load_indexed_dataset(str(label / "train"), labels)
    assert [labels.string(found[n]) for n in range(len(found))] == [sample.label for sample in samples]


# -- broken files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", FOLDERS)
@pytest.mark.parametrize("wanted", FOLDERS)
def test_a_file_of_the_wrong_task(wanted, found, tmp_path):
    task, folder = FOLDERS[wanted], glue_corpus.write_task(tmp_path, found)
    if found == "MNLI":
        (folder / "dev_matched.tsv").rename(folder / "dev.tsv")
    if wanted == "MNLI" and found != "MNLI":
        (folder / "dev.tsv").rename(folder / "dev_matched.tsv")
    if wanted == found:
        assert looks_like([line.split("\t") for line in (folder / "train.tsv").read_text().splitlines()]) == found
        return
    with pytest.raises(UserError, match=rf"train.tsv is not a file of {wanted}: it looks like {found}; put {wanted}'s"):
        read(folder, task)


def test_wnli_is_not_taken_for_rte(tmp_path):
    folder = glue_corpus.write_task(tmp_path, "RTE")
    lines = (folder / "train.tsv").read_text().replace("\tnot_entailment\n", "\t0\n").replace("\tentailment\n", "\t1\n")
    (folder / "train.tsv").write_text(lines)
    with pytest.raises(UserError, match="is not a file of RTE: it looks like WNLI"):
        read(folder, TASKS["rte"])
    with pytest.raises(UserError, match="WNLI is left out"):
        task_named("WNLI")
    with pytest.raises(UserError, match="no GLUE task 'boolq'"):
        task_named("boolq")
    assert task_named("STS-B") is task_named("stsb") is TASKS["sts_b"]


def test_broken_lines_are_left_out_and_counted(tmp_path, capsys):
    folder = glue_corpus.write_task(tmp_path, "QQP")
    broken = [b"1\t2\t3\tone question\n", b"1\t2\t3\t\t\t1\n", b"1\t2\t3\ta\t\xff\xfe\t1\n", b"1\t2\t3\ta\tb\t\n"]
    with (folder / "train.tsv").open("ab") as file:
        file.writelines(broken)
    skipped = Skipped(10)
    assert len(read_task(folder, TASKS["qqp"], skipped)["train"]) == 24
    assert str(skipped) == "1 another number of columns, 1 without text, 1 not UTF-8, 1 without a label"
    assert "train.tsv:26: another number of columns" in capsys.readouterr().err
    with pytest.raises(UserError, match="train.tsv:28: not UTF-8, and 3 lines so far .*--max-bad-lines allows 2"):
        read(folder, TASKS["qqp"], limit=2)


@pytest.mark.parametrize(
    "name, label, message",
    [
        ("RTE", "maybe", "the label 'maybe' is none of RTE's .entailment, not_entailment."),
        ("CoLA", "2", "the label '2' is none of CoLA's"),
        ("STS-B", "5.5", "the score '5.5' is no number from 0 to 5"),
        ("STS-B", "high", "the score 'high' is no number"),
    ],
)
def test_labels_outside_the_classes(name, label, message, tmp_path):
    folder = glue_corpus.write_task(tmp_path, name)
    path = folder / "dev.tsv"
    lines = path.read_text().splitlines()
    cells, column = lines[-1].split("\t"), 1 if name == "CoLA" else -1
    cells[column] = label
    path.write_text("\n".join([*lines[:-1], "\t".join(cells)]) + "\n")
    with pytest.raises(UserError, match=rf"dev.tsv:{len(lines)}: {message}"):
        read(folder, FOLDERS[name])


def test_a_file_that_is_missing_or_empty(tmp_path):
    folder = glue_corpus.write_task(tmp_path, "RTE")
    (folder / "dev.tsv").unlink()
    with pytest.raises(UserError, match="dev.tsv does not exist"):
        read(folder, TASKS["rte"])
    (folder / "dev.tsv").write_text("")
    with pytest.raises(UserError, match="dev.tsv is empty"):
        read(folder, TASKS["rte"])
    (folder / "dev.tsv").write_text(glue_corpus.HEADERS["RTE"] + "\n")
    with pytest.raises(UserError, match="no line of the valid split can be used .it is empty"):
        read(folder, TASKS["rte"])
    with pytest.raises(UserError, match="holds no QNLI/train.tsv.* leave qnli out: --tasks"):
        find_folder(tmp_path, TASKS["qnli"])
    with pytest.raises(UserError, match="this folder does not exist"):
        find_folder(tmp_path / "nowhere", TASKS["qnli"])


def test_mrpc_as_microsoft_gives_it(tmp_path, capsys):
    folder = glue_corpus.write_task(tmp_path, "MRPC")
    whole = (folder / "train.tsv").read_text()
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).unlink()
    (folder / "msr_paraphrase_train.txt").write_bytes(b"\xef\xbb\xbf" + whole.replace("\n", "\r\n").encode())
    (folder / "msr_paraphrase_test.txt").write_text(whole)
    found = read(folder, TASKS["mrpc"])
    assert [len(found[split]) for split in ("train", "valid")] == [24, 24]
    assert "scores are not those of GLUE" in capsys.readouterr().err
    (folder / "dev_ids.tsv").write_text("0\t100\n3\t203\n")
    found = read(folder, TASKS["mrpc"])
    assert [len(found[split]) for split in ("train", "valid")] == [22, 2]
    assert found["valid"][0].texts == ROWS["MRPC"][0]


# -- encoding ----------------------------------------------------------------------------------------


def test_long_pairs_lose_the_end_of_the_longer_sentence(tmp_path, text):
    a, b = np.array([*range(10, 20), 2]), np.array([7, 8, 2])
    assert [part.tolist() for part in cut([a, b], 14)] == [a.tolist(), b.tolist()]
    assert [part.tolist() for part in cut([a, b], 8)] == [[10, 11, 12, 13, 2], [7, 8, 2]]
    assert [len(part) for part in cut([a, a], 9)] == [4, 5]
    encoder = TextEncoder.of_folder(text)
    rows = [Sample(("The river froze in January. " * 9, "It was cold."), "1"), Sample(("It was cold.",) * 2, "0")]
    count = write_split(tmp_path, "train", rows, encoder, ("0", "1"), max_positions=40)
    assert (count.longest, count.cut, count.samples) == (40, 1, 2)
    dictionary = Dictionary.load(str(text / "dict.txt"))
    found = [data_utils.load_indexed_dataset(str(tmp_path / f"input{k}" / "train"), dictionary)[0] for k in (0, 1)]
    assert 1 + len(found[0]) + 1 + len(found[1]) == 40
    assert all(part[-1] == dictionary.eos() for part in found)
    assert dictionary.string(found[1]).replace(" ", "").replace("▁", " ").strip() == "It was cold."


@pytest.fixture
def pairs(tmp_path):
    """GPT-2's files with a few pairs."""
    letters = {chr(code): n for n, code in enumerate(range(33, 127))} | {"Ġ": 94, "th": 95, "the": 96, "Ġthe": 97}
    (tmp_path / "encoder.json").write_text(json.dumps(letters))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nt h\nth e\nĠ the\n", encoding="utf-8")
    order = [97, 96, *range(95), 95]
    (tmp_path / "dict.txt").write_text("".join(f"{number} 1\n" for number in order if number != 0))
    return tmp_path


def test_gpt2s_pairs_as_fairseq_encodes_them(pairs):
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    encoder = TextEncoder.of_gpt2(pairs / "encoder.json", pairs / "vocab.bpe", pairs / "dict.txt")
    bpe = get_encoder(str(pairs / "encoder.json"), str(pairs / "vocab.bpe"))
    dictionary = Dictionary.load(str(pairs / "dict.txt"))
    lines = ["the cat on the mat", "what!", "then"]
    tokens, sizes = encoder.encode(lines)
    # as examples/roberta/multiprocessing_bpe_encoder.py writes them and fairseq-preprocess reads them
    spelt = [" ".join(map(str, bpe.encode(line))) for line in lines]
    expected = [dictionary.encode_line(line, add_if_not_exist=False).tolist() for line in spelt]
    assert [part.tolist() for part in np.split(tokens, np.cumsum(sizes)[:-1])] == expected
    assert expected[1][-2] == dictionary.unk()  # "!" has no symbol
    with pytest.raises(UserError, match="vocab.txt: this file does not exist"):
        TextEncoder.of_gpt2(pairs / "encoder.json", pairs / "vocab.txt", pairs / "dict.txt")
    (pairs / "encoder.json").write_text("no")
    with pytest.raises(UserError, match="are not GPT-2's byte pairs"):
        TextEncoder.of_gpt2(pairs / "encoder.json", pairs / "vocab.bpe", pairs / "dict.txt")


def test_the_command(tmp_path, text, pairs, capsys):
    glue_corpus.write_task(tmp_path / "glue", "RTE")
    glue_corpus.write_task(tmp_path / "glue", "SST-2")
    words = ["glue", "prepare", str(tmp_path / "glue"), "--dest", str(tmp_path / "bin"), "--tasks", "rte", "SST-2"]
    assert main([*words, "--text", str(text), "--max-positions", "20"]) == 0
    assert "24 samples, longest 20 tokens" in capsys.readouterr().out
    assert (tmp_path / "bin" / "sst_2" / "label" / "dict.txt").is_file()
    assert main([*words, "--text", str(text)]) == 0
    assert "there already, left as it is" in capsys.readouterr().out
    dictionary = tmp_path / "bin" / "rte" / "input0" / "dict.txt"
    dictionary.write_text(dictionary.read_text() + "other 1\n")
    assert main([*words, "--text", str(text)]) == 2
    assert "was written with another dictionary" in capsys.readouterr().err
    gpt2 = ["--gpt2-encoder", str(pairs / "encoder.json"), "--gpt2-vocab", str(pairs / "vocab.bpe")]
    words[4] = str(tmp_path / "bin2")
    assert main([*words, *gpt2, "--dict", str(pairs / "dict.txt")]) == 0
    for wrong, message in (
        ([], "give the pieces of the pre-trained model"),
        (gpt2, "all of --dict, --gpt2-encoder and --gpt2-vocab"),
        (["--text", str(tmp_path / "nowhere")], "this folder does not exist"),
        (["--text", str(text), "--max-positions", "3"], "--max-positions must be at least 8"),
        (["--text", str(text), "--max-bad-lines", "-2"], "--max-bad-lines must be -1"),
        (["--text", str(text), "--tasks", "rte", "qqp"], "holds no QQP/train.tsv"),
    ):
        words[4] = str(tmp_path / "bin3")
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "bin3").exists()
