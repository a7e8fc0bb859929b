"""Beam search with a lexicon and an ARPA model: it must read what greedy decoding gets wrong."""

import sys

import numpy as np
import pytest
import torch

from d2v_plugin.errors import UserError
from d2v_plugin.eval.ctc import greedy_ctc, symbols_to_text
from d2v_plugin.eval.lm import BeamOptions, LexiconDecoder, read_lexicon

SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "|", "a", "c", "e", "h", "t", "s"]
ARPA = r"""\data\
ngram 1=6
ngram 2=4

\1-grams:
-2.0	<unk>	0
-9.0	<s>	-0.3
-1.0	</s>	0
-1.2	the	-0.2
-1.2	cat	-0.2
-1.0	hat	-0.2

\2-grams:
-0.2	<s> the
-0.2	the cat
-2.5	the hat
-0.2	cat </s>

\end\
"""


@pytest.fixture
def files(tmp_path):
    lexicon, lm = tmp_path / "lexicon.txt", tmp_path / "lm.arpa"
    # with and without the closing boundary
    lexicon.write_text("the\tt h e |\ncat\tc a t |\nhat h a t\n")
    lm.write_text(ARPA)
    return lexicon, lm


def emissions(path, rivals=None, rival_share=0.45):
    """(T, V) log-probabilities that spell ``path`` ("." is the blank); at frame t a rival gets ``rival_share``."""
    probs = np.full((len(path), len(SYMBOLS)), 1e-4)
    for t, symbol in enumerate(path):
        rival = (rivals or {}).get(t)
        probs[t, 0 if symbol == "." else SYMBOLS.index(symbol)] = 1 - rival_share if rival else 1.0
        if rival:
            probs[t, SYMBOLS.index(rival)] = rival_share
    return np.log(probs / probs.sum(1, keepdims=True)).astype(np.float32)


def greedy(scores):
    (decoded,) = greedy_ctc(torch.from_numpy(scores)[None], [len(scores)])
    return symbols_to_text(SYMBOLS[i] for i in decoded)


def test_language_model_mends_what_greedy_gets_wrong(files):
    lexicon, lm = files
    scores = emissions("th.e|.hat|", rivals={6: "c"})
    assert greedy(scores) == "the hat"
    assert LexiconDecoder(SYMBOLS, lexicon, lm)(scores) == "the cat"
    # without weight the acoustic evidence decides, so it was the language model
    assert LexiconDecoder(SYMBOLS, lexicon, lm, BeamOptions(lm_weight=0.0))(scores) == "the hat"


def test_lexicon_alone_mends_spelling(files):
    lexicon, _ = files
    scores = emissions("the|.cas|", rivals={7: "t"})
    assert greedy(scores) == "the cas"
    assert LexiconDecoder(SYMBOLS, lexicon, None, BeamOptions(word_score=0.0))(scores) == "the cat"


def test_labels_without_closing_boundary(files):
    lexicon, lm = files
    assert LexiconDecoder(SYMBOLS, lexicon, lm)(emissions("the|.cat")) == "the cat"


def test_silence_is_no_word(files):
    assert LexiconDecoder(SYMBOLS, *files)(emissions("......")) == ""


def test_lexicon_errors(tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("the\tt h e |\n\nzoo\tz o o |\n")
    with pytest.raises(UserError, match=r":3: 'zoo' has letters o z that the dictionary lacks"):
        read_lexicon(lexicon, SYMBOLS)
    lexicon.write_text("the\n")
    with pytest.raises(UserError, match=r":1: 'the' has no spelling"):
        read_lexicon(lexicon, SYMBOLS)
    lexicon.write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_lexicon(lexicon, SYMBOLS)
    with pytest.raises(UserError, match="cannot read the lexicon"):
        read_lexicon(tmp_path / "none.txt", SYMBOLS)
    with pytest.raises(UserError, match="words have no end"):
        read_lexicon(lexicon, ["<s>", "a"])


def test_language_model_errors(files, tmp_path):
    lexicon, lm = files
    with pytest.raises(UserError, match="cannot read the language model"):
        LexiconDecoder(SYMBOLS, lexicon, tmp_path / "none.arpa")
    lm.write_bytes(b"\x1f\x8b compressed")
    with pytest.raises(UserError, match="neither ARPA"):
        LexiconDecoder(SYMBOLS, lexicon, lm)
    lm.write_text("\\data\\\nngram 1=2\n\n\\1-grams:\nnonsense\n")
    with pytest.raises(UserError, match="KenLM cannot read"):
        LexiconDecoder(SYMBOLS, lexicon, lm)


def test_missing_package_names_the_command(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder.kenlm", None)
    with pytest.raises(UserError, match="pip install flashlight-text"):
        LexiconDecoder(SYMBOLS, *files)
