"""Beam search through flashlight-text, whose wheels carry KenLM (Linux x86-64, CPython 3.11 and 3.12)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d2v_plugin.errors import UserError
from d2v_plugin.eval.ctc import BLANK, WORD_BOUNDARY
from d2v_plugin.eval.lexicon import BeamOptions, read_lexicon, with_closing_frame

UNKNOWN = "<unk>"


def import_flashlight():
    """flashlight's decoder and dictionary modules and its KenLM class, or one line that says how to get them."""
    try:
        from flashlight.lib.text import decoder
        from flashlight.lib.text.decoder.kenlm import KenLM
        from flashlight.lib.text.dictionary import Dictionary
    except ImportError as error:
        raise UserError(
            "--decoder flashlight needs flashlight-text with KenLM: pip install flashlight-text (wheels for "
            "CPython 3.11 and 3.12 on Linux x86-64), or use --decoder python"
        ) from error
    return decoder, Dictionary, KenLM


class FlashlightDecoder:
    """Beam search over the words of a lexicon, in C++.

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
            # the message begins with the source line that threw
            reason = re.sub(r".*threw \w+\.\s*", "", " ".join(str(error).split()))
            raise UserError(f"KenLM cannot read {lm}: {reason}; check the file") from error

    def __call__(self, log_probs: np.ndarray) -> str:
        """Best text for one utterance.

        Args:
            log_probs: (T, V) natural-log probabilities, padding cut off.
        """
        emissions = with_closing_frame(log_probs, self.boundary)
        results = self.search.decode(emissions.ctypes.data, *emissions.shape)
        if not results:
            return ""
        return " ".join(self.words.get_entry(word) for word in results[0].words if word >= 0)
