"""The same beam search in plain Python, for interpreters that flashlight-text has no wheel for.

States are (language model state, node of the lexicon tree, last symbol). Of the paths that reach the same state the
best one is kept (flashlight's ``log_add=False``), so with a beam that drops nothing both find the same sentence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from d2v_plugin.eval.arpa import ArpaModel
from d2v_plugin.eval.ctc import BLANK, WORD_BOUNDARY
from d2v_plugin.eval.lexicon import BeamOptions, read_lexicon, with_closing_frame


@dataclass(eq=False)
class Node:
    """A prefix of spellings. ``ahead``: best log10 p(word | sentence start) of the words below."""

    children: dict[int, Node] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    ahead: float = -math.inf


class _NoModel:
    """Every word is as likely as any other."""

    def start(self) -> tuple:
        return ()

    def score(self, state: tuple, word: str) -> tuple[tuple, float]:
        return state, 0.0

    def finish(self, state: tuple) -> float:
        return 0.0


class PythonDecoder:
    """Beam search over the words of a lexicon.

    Args:
        symbols: the model's output symbols in order; index 0 is the blank.
        lexicon: file, see :func:`d2v_plugin.eval.lexicon.read_lexicon`.
        lm: ARPA file over the lexicon's words; None gives every word the same score.
        options: search settings.
    Raises:
        UserError: a file is unreadable or does not fit the symbols.
    """

    def __init__(self, symbols: Sequence[str], lexicon: Path, lm: Path | None, options: BeamOptions | None = None):
        self.options = options or BeamOptions()
        self.boundary = list(symbols).index(WORD_BOUNDARY) if WORD_BOUNDARY in symbols else -1
        words = read_lexicon(lexicon, symbols)
        self.model = _NoModel() if lm is None else ArpaModel(lm)
        self.root = Node()
        for word, spellings in words.items():
            _, score = self.model.score(self.model.start(), word)
            for spelling in spellings:
                self._insert(spelling, word, score)
        # between words nothing is foreseen
        self.root.ahead = 0.0

    def _insert(self, spelling: list[int], word: str, score: float) -> None:
        node = self.root
        for symbol in spelling:
            node = node.children.setdefault(symbol, Node())
            node.ahead = max(node.ahead, score)
        node.words.append(word)

    def _successors(self, node: Node, last: int, frame: list[float]):
        """(node, symbol, its log-probability) for everything the next frame may be."""
        yield node, BLANK, frame[BLANK]
        if last != BLANK:
            yield node, last, frame[last]
        elif node is self.root:
            # silence between words
            yield node, self.boundary, frame[self.boundary]
        for symbol, child in node.children.items():
            if symbol != last:
                yield child, symbol, frame[symbol]

    def _extend(self, beam: dict, frame: list[float]) -> dict:
        """All states of the next frame, not pruned: {(lm state, node, last symbol): (score, words)}."""
        options, found = self.options, {}

        def keep(key: tuple, score: float, words: tuple) -> None:
            if key not in found or found[key][0] < score:
                found[key] = (score, words)

        for (state, node, last), (score, words) in beam.items():
            for following, symbol, log_prob in self._successors(node, last, frame):
                total = score + log_prob
                if following is node or following.children:
                    keep((state, following, symbol), total, words)
                if following is node:
                    continue
                for word in following.words:
                    after, lm_score = self.model.score(state, word)
                    gained = options.lm_weight * lm_score + options.word_score
                    keep((after, self.root, symbol), total + gained, (words, word))
        return found

    def _prune(self, found: dict) -> dict:
        weight = self.options.lm_weight
        ranked = sorted(found.items(), key=lambda item: item[1][0] + weight * item[0][1].ahead, reverse=True)
        best = ranked[0][1][0] + weight * ranked[0][0][1].ahead
        floor = best - self.options.beam_threshold
        return {key: value for key, value in ranked[: self.options.beam] if value[0] + weight * key[1].ahead >= floor}

    def __call__(self, log_probs: np.ndarray) -> str:
        """Best text for one utterance.

        Args:
            log_probs: (T, V) natural-log probabilities, padding cut off.
        """
        beam = {(self.model.start(), self.root, BLANK): (0.0, ())}
        for frame in with_closing_frame(log_probs, self.boundary).tolist():
            beam = self._prune(self._extend(beam, frame))
        ended = [
            (score + self.options.lm_weight * self.model.finish(state), words)
            for (state, node, _), (score, words) in beam.items()
            if node is self.root
        ]
        if not ended:
            return ""
        _, chain = max(ended, key=lambda item: item[0])
        words = []
        while chain:
            chain, word = chain
            words.append(word)
        return " ".join(reversed(words))
