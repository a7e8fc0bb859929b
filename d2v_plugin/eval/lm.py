"""CTC beam search with a lexicon and an n-gram language model, through flashlight-text.

Why flashlight-text (measured in November 2026): its 0.0.7 wheels (Linux x86-64, CPython 3.11 and 3.12) bring
KenLM inside, so an ARPA or KenLM binary file works after one ``pip install`` and no compiler. The others looked
at: ``pyctcdecode`` pins numpy below 2 and needs ``kenlm``, which is on PyPI as source only and builds with CMake;
``torchaudio``'s ctc_decoder is itself a layer over flashlight-text. There is no wheel for CPython 3.13, so the
import is optional: greedy decoding never needs it, and the error names what to do.

A hypothesis scores  log p_ctc + lm_weight * log10 p_lm + word_score * words  (flashlight's definition).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2v_plugin.errors import UserError
from d2v_plugin.eval.ctc import BLANK, WORD_BOUNDARY

UNKNOWN = "<unk>"
# log-probability of what the closing frame does not allow
FORBIDDEN = -1e4


@dataclass(frozen=True)
class BeamOptions:
    """Search settings; the weights are those of fairseq's wav2vec README (4-gram, LibriSpeech)."""

    beam: int = 100
    beam_threshold: float = 25.0
    lm_weight: float = 2.0
    word_score: float = -1.0


def import_flashlight():
    """flashlight's decoder and dictionary modules and its KenLM class, or one line that says how to get them."""
    try:
        from flashlight.lib.text import decoder
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError as error:
        raise UserError(
            "--lexicon/--lm need flashlight-text with KenLM: pip install flashlight-text (wheels for "
            "CPython 3.11 and 3.12 on Linux x86-64; leave --lexicon and --lm out to decode greedily)"
        ) from error
    return decoder, Dictionary, KenLM


def read_lexicon(path: Path, symbols: Sequence[str]) -> dict[str, list[list[int]]]:
    """Word -> spellings as symbol indices.

    Each line is ``WORD<tab or spaces>l e t t e r s``, with or without the closing ``|``, which is added where
    it is missing. A word may stand on several lines.

    Raises:
        UserError: an unreadable or empty file, a word without spelling, a letter that the model does not have.
    """
    index = {symbol: i for i, symbol in enumerate(symbols)}
    if WORD_BOUNDARY not in index:
        raise UserError(
            f"the dictionary has no {WORD_BOUNDARY!r}, so words have no end and a lexicon cannot be "
            "used; leave --lexicon and --lm out"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the lexicon {path}: {error}; give --lexicon a UTF-8 file") from error
    lexicon: dict[str, list[list[int]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        word, *letters = line.split()
        letters = [*letters, WORD_BOUNDARY] if letters[-1:] != [WORD_BOUNDARY] else letters
        unknown = sorted({letter for letter in letters if letter not in index})
        if len(letters) < 2 or unknown:
            what = f"letters {' '.join(unknown)} that the dictionary lacks" if unknown else "no spelling"
            raise UserError(f"{path}:{number}: {word!r} has {what}; write lines as WORD<tab>l e t t e r s |")
        lexicon.setdefault(word, []).append([index[letter] for letter in letters])
    if not lexicon:
        raise UserError(f"the lexicon {path} is empty; write lines as WORD<tab>l e t t e r s |")
    return lexicon


class LexiconDecoder:
    """Beam search over the words of a lexicon.

    Args:
        symbols: the model's output symbols in order; index 0 is the blank.
        lexicon: file, see :func:`read_lexicon`.
        lm: ARPA or KenLM binary over the lexicon's words; None gives every word the same score.
        options: search settings.
    Raises:
        UserError: flashlight-text is missing, a file is unreadable or does not fit the symbols.
    """

    def __init__(self, symbols: Sequence[str], lexicon: Path, lm: Path | None, options: BeamOptions | None = None):
        decoder, dictionary_class, kenlm_class = import_flashlight()
        options = options or BeamOptions()
        words = read_lexicon(lexicon, symbols)
        self.boundary = list(symbols).index(WORD_BOUNDARY)
        self.words = dictionary_class([*words, *([] if UNKNOWN in words else [UNKNOWN])])
        self.model = self._language_model(decoder, kenlm_class, lm)
        start = self.model.start(False)
        trie = decoder.Trie(len(symbols), self.boundary)
        for word, spellings in words.items():
            label = self.words.get_index(word)
            _, word_score = self.model.score(start, label)
            for spelling in spellings:
                trie.insert(spelling, label, word_score)
        # the best word below a node stands for it, so that unlikely beginnings can be pruned early
        trie.smear(decoder.SmearingMode.MAX)
        settings = decoder.LexiconDecoderOptions(
            beam_size=options.beam,
            beam_size_token=len(symbols),
            beam_threshold=options.beam_threshold,
            lm_weight=options.lm_weight,
            word_score=options.word_score,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=False,
            criterion_type=decoder.CriterionType.CTC,
        )
        self.search = decoder.LexiconDecoder(
            settings, trie, self.model, self.boundary, BLANK, self.words.get_index(UNKNOWN), [], False
        )

    def _language_model(self, decoder, kenlm_class, lm: Path | None):
        if lm is None:
            return decoder.ZeroLM()
        # KenLM ends the process on some unreadable files, so look first
        try:
            head = lm.open("rb").read(64)
        except OSError as error:
            raise UserError(
                f"cannot read the language model {lm}: {error.strerror}; give --lm an ARPA or KenLM binary file"
            ) from error
        if not head.lstrip().startswith((b"\\data\\", b"mmap lm")):
            raise UserError(
                f"{lm} is neither ARPA (it begins with \\data\\) nor a KenLM binary; unpack it if it is compressed"
            )
        try:
            return kenlm_class(str(lm), self.words)
        except RuntimeError as error:
            raise UserError(f"KenLM cannot read {lm}: {' '.join(str(error).split())}; check the file") from error

    def __call__(self, log_probs: np.ndarray) -> str:
        """Best text for one utterance.

        Args:
            log_probs: (T, V) natural-log probabilities, padding cut off.
        """
        # One more frame in which a word may end: models whose labels have no closing "|" never emit the last one.
        closing = np.full((1, log_probs.shape[1]), FORBIDDEN, dtype=np.float32)
        closing[0, [BLANK, self.boundary]] = 0.0
        emissions = np.ascontiguousarray(np.concatenate([log_probs.astype(np.float32), closing]))
        results = self.search.decode(emissions.ctypes.data, *emissions.shape)
        if not results:
            return ""
        return " ".join(self.words.get_entry(word) for word in results[0].words if word >= 0)
