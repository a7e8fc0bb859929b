"""Beam search with a lexicon and an n-gram model: it must read what greedy decoding gets wrong.

The search in plain Python runs everywhere, flashlight's where a wheel of it exists.
"""

import importlib.util
import itertools
import sys

import numpy as np
import pytest
import torch

from d2v_plugin.errors import UserError
from d2v_plugin.eval.beam import make_decoder
from d2v_plugin.eval.ctc import greedy_ctc, symbols_to_text
from d2v_plugin.eval.lexicon import BeamOptions, read_lexicon

DECODERS = ["python"] + ["flashlight"] * (importlib.util.find_spec("flashlight") is not None)
SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "|", "a", "c", "e", "h", "t", "s"]
UNIGRAMS = {"the": (-1.2, -0.2), "cat": (-1.2, -0.2), "hat": (-1.0, -0.2), "</s>": (-1.0, 0.0), "<s>": (-9.0, -0.3)}
BIGRAMS = {("<s>", "the"): -0.2, ("the", "cat"): -0.2, ("the", "hat"): -2.5, ("cat", "</s>"): -0.2}


def arpa() -> str:
    unigrams = "".join(f"{p}\t{word}\t{backoff}\n" for word, (p, backoff) in UNIGRAMS.items())
    bigrams = "".join(f"{p}\t{' '.join(pair)}\n" for pair, p in BIGRAMS.items())
    head = f"\\data\\\nngram 1={len(UNIGRAMS) + 1}\nngram 2={len(BIGRAMS)}\n"
    return f"{head}\n\\1-grams:\n-2.0\t<unk>\t0\n{unigrams}\n\\2-grams:\n{bigrams}\n\\end\\\n"


@pytest.fixture
def files(tmp_path):
    lexicon, lm = tmp_path / "lexicon.txt", tmp_path / "lm.arpa"
    # with and without the closing boundary
    lexicon.write_text("the\tt h e |\ncat\tc a t |\nhat h a t\n")
    lm.write_text(arpa())
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


def build(name, lexicon, lm, **options):
    return make_decoder(name, SYMBOLS, lexicon, lm, BeamOptions(**options))[1]


@pytest.mark.parametrize("name", DECODERS)
def test_language_model_mends_what_greedy_gets_wrong(files, name):
    lexicon, lm = files
    scores = emissions("th.e|.hat|", rivals={6: "c"})
    assert greedy(scores) == "the hat"
    assert build(name, lexicon, lm)(scores) == "the cat"
    # without weight the acoustic evidence decides, so it was the language model
    assert build(name, lexicon, lm, lm_weight=0.0)(scores) == "the hat"


@pytest.mark.parametrize("name", DECODERS)
def test_lexicon_alone_mends_spelling(files, name):
    lexicon, _ = files
    scores = emissions("the|.cas|", rivals={7: "t"})
    assert greedy(scores) == "the cas"
    assert build(name, lexicon, None, word_score=0.0)(scores) == "the cat"


@pytest.mark.parametrize("name", DECODERS)
def test_labels_without_closing_boundary(files, name):
    assert build(name, *files)(emissions("the|.cat")) == "the cat"


@pytest.mark.parametrize("name", DECODERS)
def test_silence_is_no_word(files, name):
    assert build(name, *files)(emissions("......")) == ""


def best_alignment(scores, symbols):
    """Log-probability of the best CTC path that spells ``symbols`` (Viterbi over the label with blanks between)."""
    states = [0]
    for symbol in symbols:
        states += [symbol, 0]
    best = np.full(len(states), -np.inf)
    best[:2] = scores[0, states[:2]]
    for frame in scores[1:]:
        before, best = best, best.copy()
        for s in range(1, len(states)):
            skip = before[s - 2] if s > 1 and states[s] and states[s] != states[s - 2] else -np.inf
            best[s] = max(best[s], before[s - 1], skip)
        best = best + frame[states]
    return best[-2:].max()


def language(words):
    """log10 p of a sentence by hand: the bigram, or back-off weight and unigram."""
    pairs = itertools.pairwise(["<s>", *words, "</s>"])
    return sum(BIGRAMS.get(pair, UNIGRAMS[pair[0]][1] + UNIGRAMS[pair[1]][0]) for pair in pairs)


def best_sentence(scores, lm_weight, word_score):
    """Every sentence of up to two words, with up to two more silences before, between and after."""
    closing = np.full((1, len(SYMBOLS)), -1e4, np.float32)
    closing[0, [0, 4]] = 0
    closed, totals = np.concatenate([scores, closing]), {}
    for count in range(3):
        for words in itertools.product(("the", "cat", "hat"), repeat=count):
            for silence in itertools.product(range(3), repeat=count + 1):
                spelled = [4] * silence[0]
                for word, more in zip(words, silence[1:], strict=True):
                    spelled += [SYMBOLS.index(letter) for letter in word] + [4] + [4] * more
                total = best_alignment(closed, spelled) + lm_weight * language(words) + word_score * count
                totals[words] = max(total, totals.get(words, -np.inf))
    return " ".join(max(totals, key=totals.get))


@pytest.mark.parametrize("name", DECODERS)
def test_wide_beam_finds_the_best_of_all_sentences(files, name):
    generator, found = np.random.default_rng(0), []
    options = {"lm_weight": 0.7, "word_score": 2.0}
    decoder = build(name, *files, beam=5000, beam_threshold=1e9, **options)
    for _ in range(12):
        # 9 frames and the closing one: no room for three words
        logits = generator.standard_normal((9, len(SYMBOLS))) * 2
        scores = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
        found.append(decoder(scores))
        assert found[-1] == best_sentence(scores, **options)
    assert len(set(found)) > 4 and any(" " in text for text in found)


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


@pytest.mark.parametrize("name", DECODERS)
def test_language_model_errors(files, tmp_path, name):
    lexicon, lm = files
    with pytest.raises(UserError, match="cannot read the language model"):
        build(name, lexicon, tmp_path / "none.arpa")
    lm.write_bytes(b"\x1f\x8b compressed")
    with pytest.raises(UserError, match="unpack it if it is compressed"):
        build(name, lexicon, lm)
    lm.write_text("\\data\\\nngram 1=2\nngram 2=1\n\n\\1-grams:\nnonsense\n")
    with pytest.raises(UserError, match=r"check the file$"):
        build(name, lexicon, lm)


def test_automatic_choice_without_flashlight(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder.kenlm", None)
    name, decoder = make_decoder("auto", SYMBOLS, *files, BeamOptions())
    assert name == "python" and decoder(emissions("the|.cat|")) == "the cat"
    with pytest.raises(UserError, match="pip install flashlight-text"):
        make_decoder("flashlight", SYMBOLS, *files, BeamOptions())
