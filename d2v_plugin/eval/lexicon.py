"""What both beam searches share: the lexicon, the settings, and where the last word may end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2v_plugin.errors import UserError
from d2v_plugin.eval.ctc import BLANK, WORD_BOUNDARY

# log-probability of what the closing frame does not allow
FORBIDDEN = -1e4


@dataclass(frozen=True)
class BeamOptions:
    """Search settings; the weights are those of fairseq's wav2vec README (4-gram, LibriSpeech)."""

    beam: int = 100
    beam_threshold: float = 25.0
    lm_weight: float = 2.0
    word_score: float = -1.0


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


def with_closing_frame(log_probs: np.ndarray, boundary: int) -> np.ndarray:
    """One more frame in which a word may end, for models whose labels have no closing ``|`` and never emit the last.

    Args:
        log_probs: (T, V) natural-log probabilities.
        boundary: index of ``|``.
    Returns:
        (T + 1, V) fp32, contiguous.
    """
    closing = np.full((1, log_probs.shape[1]), FORBIDDEN, dtype=np.float32)
    closing[0, [BLANK, boundary]] = 0.0
    return np.ascontiguousarray(np.concatenate([log_probs.astype(np.float32), closing]))
