"""Features of text: means over the right tokens whatever the batch; probes that find what is there and nothing else."""

import json
import random

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from prose import documents, write_documents
from tiny_multi import root_config, tiny
from tiny_text import root_config as root_config_v1
from tiny_text import tiny as tiny_v1

from d2v_plugin.cli.main import main
from d2v_plugin.data.text.build import BuildOptions, build
from d2v_plugin.errors import UserError
from d2v_plugin.eval.text_features import Passage, Tokenizer, layer_means, load_text_model
from d2v_plugin.eval.text_probe import (
    FIT,
    SCORE,
    Example,
    Probe,
    format_table,
    probe_network,
    read_examples,
    write_examples,
)

LONGEST = 40  # what tiny_multi has positions for
PAIR = ("garden", "window")
SETTINGS = {"num_extra_tokens": 1, "use_alibi_encoder": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    write_documents(folder / "a.txt", documents(40))
    options = BuildOptions([str(folder / "a.txt")], str(folder / "data"), valid_share=0, vocab_size=90)
    build(options, tell=lambda line: None)
    return folder / "data"


def task_of(data):
    from fairseq.data import Dictionary

    task = type("Task", (), {"source_dictionary": Dictionary.load(str(data / "dict.txt"))})
    task.source_dictionary.add_symbol("<mask>")
    return task


def saved(model, root, task, path):
    """As d2v_masked_lm saves it."""
    state = {
        "cfg": {**OmegaConf.to_container(root, resolve=True), "task": {"_name": "x"}},
        "model": model.state_dict(),
        "task_state": {"symbols": list(task.source_dictionary.symbols)},
    }
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(data):
    """A model with a prenet and an extra token, over the folder's dictionary."""
    task = task_of(data)
    torch.manual_seed(5)
    model = tiny("TEXT", SETTINGS, task=task)
    return saved(model, root_config("TEXT", SETTINGS), task, data.parent / "model.pt")


@pytest.fixture(scope="module")
def checkpoint_v1(data):
    task = task_of(data)
    torch.manual_seed(5)
    return saved(tiny_v1(task), root_config_v1(), task, data.parent / "model_v1.pt")


def words(text):
    return tuple(text.split())


def passages(count=30, seed=3):
    return [Passage(words(lines[0])) for lines in documents(count, lines=1, seed=seed)]


def test_words_one_by_one_are_the_text_as_trained_on(data):
    tokenizer = Tokenizer(data)
    for passage in passages():
        text = " ".join(passage.words)
        expected = tokenizer.ids[tokenizer.processor.encode(text)].tolist()
        found = tokenizer(passage, 1000)
        assert found.ids.tolist() == [0, *expected, 2] and (found.start, found.end) == (1, len(found.ids) - 1)


def test_the_part_meant_is_the_words(data):
    tokenizer, text = Tokenizer(data), words("The gentle river wondered openly to her.")
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            tokens = tokenizer(Passage(text, start, end), 1000)
            pieces = [tokenizer.symbols[i] for i in tokens.ids[tokens.start : tokens.end]]
            assert "".join(pieces).replace("\u2581", " ").split() == list(text[start:end])


def test_long_passages_are_cut_behind(data):
    tokenizer, text = Tokenizer(data), words("river " * 50)
    whole = tokenizer(Passage(text), 1000)
    cut = tokenizer(Passage(text), 20)
    assert len(cut.ids) == 20 and cut.ids[:19].tolist() == whole.ids[:19].tolist() and cut.ids[-1] == 2
    assert (cut.start, cut.end) == (1, 19)
    assert tokenizer(Passage(text, 0, 1), 20) is not None
    assert tokenizer(Passage(text, 49, 50), 20) is None


@pytest.mark.parametrize("max_tokens", [1, 60, 8192])
def test_means_are_those_of_each_passage_alone(checkpoint, data, max_tokens):
    loaded = load_text_model(checkpoint, data)
    assert loaded.depth == 1 + 3 and loaded.longest == LONGEST
    chosen = [Passage(p.words, n % 2, None if n % 3 else len(p.words) - 1) for n, p in enumerate(passages(12))]
    tokens = [loaded.tokenizer(passage, LONGEST) for passage in chosen]
    found = layer_means(loaded, tokens, [0, 1, 4], max_tokens)
    for index, passage in enumerate(tokens):
        alone = layer_means(loaded, [passage], range(5))
        for layer in found:
            np.testing.assert_allclose(found[layer][index], alone[layer][0], atol=2e-6)
        with torch.no_grad():
            output = loaded.model.extract_features(torch.from_numpy(passage.ids)[None], mode="TEXT")["x"][0]
        last = output[passage.start : passage.end].mean(0).numpy()
        np.testing.assert_allclose(found[4][index], last, atol=2e-6)
    assert layer_means(loaded, [], [2])[2].shape == (0, 48)


def test_means_of_1_0_are_those_of_each_passage_alone(checkpoint_v1, data):
    loaded = load_text_model(checkpoint_v1, data)
    assert (loaded.depth, loaded.longest) == (3, LONGEST) and "data2vec_text: 3 layers" in loaded.describe()
    tokens = [loaded.tokenizer(passage, LONGEST) for passage in passages(12)]
    found = layer_means(loaded, tokens, range(4))
    for index, passage in enumerate(tokens):
        with torch.no_grad():
            _, extra = loaded.model(torch.from_numpy(passage.ids)[None], features_only=True, return_all_hiddens=True)
        for layer, state in enumerate(extra["inner_states"]):
            mean = state[passage.start : passage.end, 0].mean(0).numpy()
            np.testing.assert_allclose(found[layer][index], mean, atol=2e-6)
    assert layer_means(loaded, [], [2])[2].shape == (0, 24)


def test_command_takes_1_0_and_says_what_it_does_not_take(checkpoint_v1, data, tmp_path, capsys):
    write_examples(tmp_path / "word.tsv", word_examples())
    options = [str(data), str(tmp_path / "word.tsv"), "--layers", "0", "3", "--untrained"]
    assert main(["probe", str(checkpoint_v1), *options, "--json", str(tmp_path / "s.json")]) == 0
    assert "data2vec_text: 3 layers" in capsys.readouterr().out
    report = json.loads((tmp_path / "s.json").read_text())
    # layer 0 holds the words and their positions, and the mean over a part keeps the first
    assert report["trained"][0]["scores"][1]["accuracy"] > 0.8
    state = torch.load(checkpoint_v1)
    state["cfg"]["model"]["_name"] = "data2vec_audio"
    torch.save(state, tmp_path / "other.pt")
    assert main(["probe", str(tmp_path / "other.pt"), *options, "--modality", "text"]) == 2
    assert "this takes data2vec_multi or data2vec_text" in capsys.readouterr().err


def test_untrained_weights_are_others_and_repeat(checkpoint, data):
    models = [load_text_model(checkpoint, data, untrained_seed=seed) for seed in (None, 1, 1, 2)]
    tokens = [models[0].tokenizer(passage, LONGEST) for passage in passages(3)]
    found = [layer_means(model, tokens, [4])[4] for model in models]
    assert np.array_equal(found[1], found[2])
    assert not np.allclose(found[0], found[1]) and not np.allclose(found[1], found[3])


def test_another_dictionary_is_refused(checkpoint, data, tmp_path):
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = (tmp_path / "dict.txt").read_text().splitlines(keepends=True)
    (tmp_path / "dict.txt").write_text("".join([rows[1], rows[0], *rows[2:]]))
    with pytest.raises(UserError, match="was trained with another dictionary"):
        load_text_model(checkpoint, tmp_path)
    (tmp_path / "sentencepiece.model").unlink()
    with pytest.raises(UserError, match="sentencepiece.model: this sentencepiece model does not exist"):
        load_text_model(checkpoint, tmp_path)


def order_examples(count=200, seed=0):
    """Whether "river" comes before "winter": no matter of pieces, and a matter of positions for a network."""
    draw, examples = random.Random(seed), []
    for index in range(count):
        pair = ["river", "winter"]
        draw.shuffle(pair)
        passage = Passage((*pair, *documents(1, lines=1, seed=index)[0][0].split()))
        side = SCORE if index % 4 == 0 else FIT
        examples.append(Example(side, pair[0], f"document {index // 2}", passage))
    return examples


def word_examples(count=200):
    """Which of two words a passage ends in; they are nowhere else."""
    draw, examples = random.Random(0), []
    for index in range(count):
        text = [word for word in documents(1, lines=1, seed=index)[0][0].split() if word[:6] not in PAIR][:3]
        label = draw.choice(PAIR)
        examples.append(Example(SCORE if index % 4 == 0 else FIT, label, f"d{index // 2}", Passage((*text, label))))
    return examples


def test_pieces_find_words_and_not_their_order(checkpoint, data):
    loaded = load_text_model(checkpoint, data)
    bag = {}
    for name, examples in (("order", order_examples()), ("word", word_examples())):
        probe = Probe(name, examples, loaded)
        (score,) = probe_network(probe, loaded, [], pieces=True).scores
        assert score.features == "pieces"
        bag[name] = score.accuracy
    assert bag["word"] > 0.95 and bag["order"] < 0.7


def test_labels_that_mean_nothing_stay_at_chance(checkpoint, data):
    loaded, draw = load_text_model(checkpoint, data), random.Random(1)
    examples = [
        Example(example.split, draw.choice("ab"), example.document, example.passage) for example in word_examples(400)
    ]
    result = probe_network(Probe("nothing", examples, loaded), loaded, [0, 4], pieces=True)
    for score in result.scores:
        assert abs(score.accuracy - 0.5) < 4 * 0.05  # a hundred are scored
        assert 0.02 < score.error < 0.08
    assert 0.4 <= result.chance <= 0.6 and (result.fitted, result.scored, result.classes) == (300, 100, 2)


def test_the_part_that_chooses_the_penalty_shares_no_document_and_no_word(checkpoint, data):
    loaded = load_text_model(checkpoint, data)
    probe = Probe("word", word_examples(), loaded)
    fitted = set(probe.documents[probe.fitting])
    assert not fitted & set(probe.documents[probe.choosing]) and probe.choosing.sum() > 10
    assert not (probe.scored & (probe.fitting | probe.choosing)).any()
    assert (probe.scored | probe.fitting | probe.choosing).all()
    same_word = [Example(FIT, "a", f"d{n}", Passage(("river", "window"), 0, 1)) for n in range(40)]
    assert len({example.chooses for example in same_word}) == 1


def test_tables_come_back(tmp_path):
    examples = [*order_examples(6), *word_examples(6)]
    write_examples(tmp_path / "x.tsv", examples)
    assert read_examples(tmp_path / "x.tsv") == examples


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("fit\ta\td\t0\t1", "x.tsv:2: expected the columns"),
        ("train\ta\td\t0\t1\tone two", "x.tsv:2: split is fit or score"),
        ("fit\ta\td\tx\t1\tone two", "start and end are numbers"),
        ("fit\ta\td\t1\t1\tone two", "words 1 to 1 are meant of 2"),
        ("fit\ta\td\t0\t3\tone two", "words 0 to 3 are meant of 2"),
    ],
)
def test_broken_tables_are_one_line(tmp_path, row, message):
    (tmp_path / "x.tsv").write_text("split\tlabel\tdocument\tstart\tend\ttext\n" + row + "\n")
    with pytest.raises(UserError, match=message):
        read_examples(tmp_path / "x.tsv")
    (tmp_path / "y.tsv").write_text("a\tb\n")
    with pytest.raises(UserError, match="y.tsv:1: expected the columns"):
        read_examples(tmp_path / "y.tsv")
    with pytest.raises(UserError, match="does not exist"):
        read_examples(tmp_path / "no.tsv")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (word_examples(40), "needs 20 passages to fit and to score, got 30, 10"),
        ([], "needs 20 passages"),
        ([Example(e.split, "a", e.document, e.passage) for e in word_examples()], "needs two labels or more"),
        ([Example(e.split, e.split, e.document, e.passage) for e in word_examples()], "each of them among the fitting"),
        ([Example(e.split, e.label, "one", e.passage) for e in word_examples()], "needs more documents .*to fit on"),
    ],
)
def test_probes_that_cannot_be_are_one_line(checkpoint, data, examples, message):
    with pytest.raises(UserError, match=message):
        Probe("p", examples, load_text_model(checkpoint, data))


def test_command(checkpoint, data, tmp_path, capsys):
    for name, examples in (("order", order_examples()), ("word", word_examples())):
        write_examples(tmp_path / f"{name}.tsv", examples)
    tables = [str(data), str(tmp_path / "order.tsv"), str(tmp_path / "word.tsv")]
    options = ["--layers", "0", "4", "--untrained", "--json", str(tmp_path / "scores.json")]
    assert main(["probe", str(checkpoint), *tables, *options]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "scores.json").read_text())
    assert [result["name"] for result in report["trained"]] == ["order", "word"]
    for result, other in zip(report["trained"], report["untrained"], strict=True):
        assert [score["features"] for score in result["scores"]] == ["pieces", "layer 0", "layer 4"]
        assert [score["features"] for score in other["scores"]] == ["layer 0", "layer 4"]
    # layer 0 holds the words and their positions, and the mean over a part keeps the first
    assert report["trained"][1]["scores"][1]["accuracy"] > 0.8
    assert "word: 2 labels, fitted on 150, scored on 50" in printed and "untrained" in printed
    assert main(["probe", str(checkpoint), *tables, "--max-tokens", "2"]) == 2
    assert "--max-tokens must be at least 3" in capsys.readouterr().err
    assert main(["probe", str(checkpoint), *tables, "--layers", "9"]) == 2
    assert "--layers takes numbers from 0 to 4" in capsys.readouterr().err


def test_a_table_that_cannot_be_probed_is_left_out(checkpoint, data, tmp_path, capsys):
    write_examples(tmp_path / "empty.tsv", [])
    write_examples(tmp_path / "word.tsv", word_examples())
    tables, options = [str(tmp_path / "empty.tsv"), str(tmp_path / "word.tsv")], ["--layers", "0"]
    assert main(["probe", str(checkpoint), str(data), *tables, *options, "--json", str(tmp_path / "s.json")]) == 0
    assert "left out: probe empty: needs 20 passages" in capsys.readouterr().out
    assert [result["name"] for result in json.loads((tmp_path / "s.json").read_text())["trained"]] == ["word"]
    assert main(["probe", str(checkpoint), str(data), tables[0], *options]) == 2
    assert "probe empty: needs 20 passages" in capsys.readouterr().err


def test_what_is_cut_off_is_told(checkpoint, data, tmp_path, capsys):
    examples = word_examples()
    long = Passage(words("river " * 60), 59, 60)
    write_examples(tmp_path / "w.tsv", [*examples, Example(FIT, "garden", "x", long)])
    assert main(["probe", str(checkpoint), str(data), str(tmp_path / "w.tsv"), "--layers", "0"]) == 0
    assert "w: 1 passages are left out" in capsys.readouterr().out


def test_table_for_the_screen(checkpoint, data):
    loaded = load_text_model(checkpoint, data)
    result = probe_network(Probe("word", word_examples(), loaded), loaded, [0], pieces=True)
    lines = format_table([result], None).splitlines()
    assert [line.split()[0] for line in lines] == ["word:", "chance", "pieces", "layer"]
    assert "untrained" not in lines[-1] and lines[2].endswith("%)") and "(neighbours " in lines[-1]
    assert all(0 <= score.knn <= 1 for score in result.scores)
