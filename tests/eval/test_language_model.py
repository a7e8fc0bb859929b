"""An n-gram model of real sentences lowers the error rate of letters that were heard with mistakes."""

import importlib.util
import math
from collections import Counter

import numpy as np
import pytest
import torch

from d2v_plugin.eval.beam import make_decoder
from d2v_plugin.eval.ctc import greedy_ctc, symbols_to_text
from d2v_plugin.eval.lexicon import BeamOptions
from d2v_plugin.eval.scoring import score

# Opening of "A Tale of Two Cities" (1859), lower case; "it was the" and what follows it come back again and again
TEXT = """
it was the best of times | it was the worst of times | it was the age of wisdom | it was the age of foolishness |
it was the epoch of belief | it was the epoch of incredulity | it was the season of light |
it was the season of darkness | it was the spring of hope | it was the winter of despair |
we had everything before us | we had nothing before us | we were all going direct to heaven |
we were all going direct the other way | in short the period was so far like the present period
"""
SENTENCES = [" ".join(part.split()) for part in TEXT.split("|")]
SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "|", *sorted(set("".join(SENTENCES)) - {" "})]
# of the words, some are one letter away from another that is no less a word
RIVALS = [
    "at",
    "was",
    "wan",
    "tha",
    "than",
    "beat",
    "timer",
    "words",
    "cage",
    "off",
    "if",
    "we",
    "he",
    "hat",
    "seasons",
]
BACKOFF = 0.3
DECODERS = ["python"] + ["flashlight"] * (importlib.util.find_spec("flashlight") is not None)


def write_lexicon(path):
    words = sorted({word for sentence in SENTENCES for word in sentence.split()} | set(RIVALS))
    path.write_text("".join(f"{word}\t{' '.join(word)} |\n" for word in words))
    return path


def write_arpa(path, order):
    """Counts of the sentences with a constant back-off weight; rivals are as likely as the rarest word."""
    grams = [Counter() for _ in range(order)]
    for sentence in SENTENCES:
        words = ["<s>", *sentence.split(), "</s>"]
        for n in range(order):
            grams[n].update(tuple(words[i : i + n + 1]) for i in range(len(words) - n))
    for word in RIVALS:
        grams[0].setdefault((word,), 1)
    total = sum(count for gram, count in grams[0].items() if gram != ("<s>",))
    lines = ["\\data\\", *(f"ngram {n + 1}={len(grams[n]) + (n == 0)}" for n in range(order))]
    for n in range(order):
        lines += ["", f"\\{n + 1}-grams:", *(["-5.0\t<unk>\t0"] if n == 0 else [])]
        for gram, count in sorted(grams[n].items()):
            of = total if n == 0 else grams[n - 1][gram[:-1]]
            probability = -99.0 if gram == ("<s>",) else math.log10((1 - BACKOFF) ** (n > 0) * count / of)
            weight = f"\t{math.log10(BACKOFF):.4f}" if n + 1 < order else ""
            lines.append(f"{probability:.4f}\t{' '.join(gram)}{weight}")
    path.write_text("\n".join([*lines, "", "\\end\\", ""]))
    return path


def heard(sentence, seed):
    """(T, V) log-probabilities of a sentence's letters, a blank after each; one in eight letters is heard as another.

    The right one is then nearly as likely, so that something else has to decide.
    """
    generator = np.random.default_rng(seed)
    letters = [*sentence.replace(" ", "|"), "|"]
    probabilities = np.full((2 * len(letters), len(SYMBOLS)), 1e-4)
    for n, letter in enumerate(letters):
        probabilities[2 * n, SYMBOLS.index(letter)] = 1.0
        probabilities[2 * n + 1, 0] = 1.0
        if letter != "|" and generator.random() < 1 / 8:
            probabilities[2 * n, generator.integers(5, len(SYMBOLS))] += 1.3
    return np.log(probabilities / probabilities.sum(1, keepdims=True)).astype(np.float32)


def error_rate(read):
    """WER in percent over all sentences, each heard three times."""
    scenes = [(sentence, heard(sentence, 100 * n + k)) for n, sentence in enumerate(SENTENCES) for k in range(3)]
    return 100 * score([text for text, _ in scenes], [read(scores) for _, scores in scenes]).words.rate


def greedily(scores):
    (found,) = greedy_ctc(torch.from_numpy(scores)[None], [len(scores)])
    return symbols_to_text(SYMBOLS[i] for i in found)


@pytest.fixture(scope="module")
def rates(tmp_path_factory):
    """WER of greedy decoding, of the lexicon alone, and with models of one, two and four words."""
    folder = tmp_path_factory.mktemp("lm")
    lexicon, options = write_lexicon(folder / "lexicon.txt"), {"beam": 50}
    found = {"greedy": error_rate(greedily)}
    alone = BeamOptions(**options, lm_weight=0.0, word_score=0.0)
    found["lexicon"] = error_rate(make_decoder("python", SYMBOLS, lexicon, None, alone)[1])
    for order in (1, 2, 4):
        lm = write_arpa(folder / f"{order}.arpa", order)
        decoder = make_decoder("python", SYMBOLS, lexicon, lm, BeamOptions(**options, lm_weight=2.0, word_score=0.0))[1]
        found[order] = error_rate(decoder)
    return found


def test_a_lexicon_helps_and_a_language_model_helps_more(rates):
    assert rates["greedy"] > 25
    assert rates["lexicon"] < 0.5 * rates["greedy"]
    assert rates[2] < 0.5 * rates["lexicon"]


def test_what_stood_before_helps(rates):
    """A model of single words knows how frequent they are, not what they follow."""
    assert rates[2] < rates[1] and rates[4] <= rates[2]


@pytest.mark.parametrize("name", DECODERS)
def test_the_decoders_that_are_there_read_a_four_gram_model(tmp_path, name):
    lexicon, lm = write_lexicon(tmp_path / "lexicon.txt"), write_arpa(tmp_path / "4.arpa", 4)
    read = make_decoder(name, SYMBOLS, lexicon, lm, BeamOptions(beam=50, lm_weight=2.0, word_score=0.0))[1]
    found = [read(heard(sentence, n)) for n, sentence in enumerate(SENTENCES[:6])]
    assert score(SENTENCES[:6], found).words.rate < 0.05
