"""sentencepiece models and fairseq's dictionaries."""

import io

import numpy as np
import pytest
import sentencepiece
from fairseq.data import Dictionary
from prose import documents

from d2v_plugin.data.text.pieces import (
    SPECIALS,
    fairseq_ids,
    load_pieces,
    portions,
    read_symbols,
    symbols_of,
    train_pieces,
    write_symbols,
)
from d2v_plugin.errors import UserError

LINES = [line for document in documents(40) for line in document]
SIZE = 90


@pytest.fixture(scope="module")
def model():
    return train_pieces(LINES, SIZE)


def foreign_model(**options):
    """A model as spm_train makes it by default: <unk> <s> </s> first."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=content, minloglevel=2, **options
    )
    return load_pieces(content.getvalue())


def test_own_models_count_like_fairseq(model, tmp_path):
    processor = load_pieces(model)
    symbols = symbols_of(processor)
    assert len(symbols) == processor.get_piece_size() == SIZE and symbols[:4] == list(SPECIALS)
    assert fairseq_ids(processor, symbols).tolist() == list(range(SIZE))
    write_symbols(tmp_path / "dict.txt", symbols, range(SIZE))
    assert read_symbols(tmp_path / "dict.txt") == symbols
    dictionary = Dictionary.load(str(tmp_path / "dict.txt"))
    assert dictionary.symbols == symbols and dictionary.count[4:] == list(range(4, SIZE))


def test_training_repeats(model):
    assert train_pieces(LINES, SIZE) == model


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 90},
        {"vocab_size": 90, "model_type": "bpe", "user_defined_symbols": ["<mask>", "<pad>"]},
        {"vocab_size": 350, "byte_fallback": True},
    ],
)
def test_other_models_are_mapped_by_piece(tmp_path, options):
    processor = foreign_model(**options)
    symbols = symbols_of(processor)
    write_symbols(tmp_path / "dict.txt", symbols, [1] * len(symbols))
    dictionary, ids = Dictionary.load(str(tmp_path / "dict.txt")), fairseq_ids(processor, symbols)
    for text in ("The gentle river talked.", "A Window of ☃☃ silver", "<mask> <pad> <unk>", ""):
        pieces = processor.encode(text, out_type=str)
        # what fairseq-preprocess makes of spm_encode's output, without the </s> it appends
        expected = dictionary.encode_line(" ".join(pieces), add_if_not_exist=False, append_eos=False)
        assert ids[np.array(processor.encode(text), int)].tolist() == expected.tolist()
    if "user_defined_symbols" in options:
        assert ids[processor.encode("<mask>")].tolist()[-1] == dictionary.index("<mask>") > 3
        assert ids[processor.encode("<pad>")].tolist()[-1] == dictionary.pad()


def test_a_dictionary_without_a_piece_makes_it_unknown(model):
    processor = load_pieces(model)
    symbols = symbols_of(processor)
    ids = fairseq_ids(processor, symbols[:10])
    assert ids[:10].tolist() == list(range(10)) and set(ids[10:].tolist()) == {3}


def test_case_folding_belongs_to_the_model():
    folding = load_pieces(train_pieces(LINES, SIZE - 20, lowercase=True))
    assert folding.encode("THE RIVER") == folding.encode("the river") != folding.encode("the winter")


def test_a_vocabulary_the_text_does_not_support():
    with pytest.raises(UserError, match=r"^--vocab-size 4000 is more .* take \d+ or fewer") as caught:
        train_pieces(LINES, 4000)
    most = int(str(caught.value).split("take ")[1].split()[0])
    assert load_pieces(train_pieces(LINES, most)).get_piece_size() == most
    with pytest.raises(UserError, match=r"^--vocab-size 6 is too small: .* are \d+; raise it"):
        train_pieces(LINES, 6)
    with pytest.raises(UserError, match="could not train a model"):
        train_pieces([], 10)


def test_long_lines_are_trained_on_in_portions():
    line = " ".join(f"word{n}" for n in range(3000))
    parts = list(portions(line))
    assert " ".join(parts) == line and max(len(part.encode()) for part in parts) <= 4000 and len(parts) < 10
    umlauts = " ".join(["ü" * 30] * 200)
    assert " ".join(portions(umlauts)) == umlauts
    assert max(len(part.encode()) for part in portions(umlauts)) <= 4000
    assert list(portions("x" * 9000 + " y")) == ["x" * 9000, "y"]
    assert list(portions("")) == []
    # sentencepiece itself would leave this line out and have nothing to train on
    assert load_pieces(train_pieces([" ".join(LINES)], SIZE)).get_piece_size() == SIZE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a 1\nb\n", r"dict.txt:2: expected a symbol and its count, got 'b'"),
        ("a 1\nb 2\na 3\n", r"dict.txt:3: 'a' stands there a second time"),
        ("a 1\n<unk> 2\n", r"dict.txt:2: '<unk>' stands there a second time"),
        (b"\xff 1\n", "not UTF-8"),
        (None, "does not exist"),
    ],
)
def test_broken_dictionaries_are_one_line(tmp_path, content, message):
    path = tmp_path / "dict.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_symbols(path)


def test_overwritten_symbols_keep_their_places(tmp_path):
    path = tmp_path / "dict.txt"
    path.write_text("a 1\nb 2\na 3 #fairseq:overwrite\n")
    assert read_symbols(path) == Dictionary.load(str(path)).symbols


def test_broken_models_are_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_pieces(tmp_path / "no.model")
    (tmp_path / "x.model").write_bytes(b"abc")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        load_pieces(tmp_path / "x.model")
    (tmp_path / "empty.model").write_bytes(b"")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        load_pieces(tmp_path / "empty.model")


def test_pieces_with_blanks_cannot_go_into_a_dictionary():
    class Blank:
        """Stands in for a model trained without normalisation on text with U+2028."""

        pieces = ("<unk>", "a\u2028b")

        def get_piece_size(self):
            return 2

        def id_to_piece(self, index):
            return self.pieces[index]

        def is_unknown(self, index):
            return index == 0

        def is_control(self, index):
            return False

        is_unused = is_control

    with pytest.raises(UserError, match="cannot hold blanks"):
        symbols_of(Blank())


def test_ids_are_integers_numpy_can_index_with(model):
    processor = load_pieces(model)
    assert fairseq_ids(processor, symbols_of(processor)).dtype == np.int64
