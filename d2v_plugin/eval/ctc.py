"""Greedy CTC decoding and the way from letter symbols to words.

fairseq's convention: symbol 0 of the dictionary (``<s>``) is the CTC blank, and ``|`` stands between words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

BLANK = 0
WORD_BOUNDARY = "|"
# fairseq's Dictionary puts these four in front of every symbol file
SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")


def greedy_ctc(scores: Tensor, lengths: Sequence[int], blank: int = BLANK) -> list[list[int]]:
    """Best symbol of every frame, repeats merged, blanks dropped.

    Args:
        scores: (B, T, V) logits or log-probabilities, any float dtype.
        lengths: B frame counts, T or fewer; frames past them are padding and are not read.
        blank: index of the CTC blank.
    Returns:
        B lists of symbol indices.
    Raises:
        ValueError: scores that are not (B, T, V), or as many lengths as there are not rows.
    """
    if scores.dim() != 3 or scores.size(0) != len(lengths):
        raise ValueError(
            f"scores must be (B, T, V) with one length a row, got {tuple(scores.shape)}, {len(lengths)} lengths"
        )
    # one copy to the host for the whole batch
    best = scores.argmax(dim=-1).cpu()
    decoded = []
    for row, length in zip(best, lengths, strict=True):
        merged = torch.unique_consecutive(row[: int(length)])
        decoded.append(merged[merged != blank].tolist())
    return decoded


def symbols_to_text(symbols: Iterable[str]) -> str:
    """``H I | Y O U |`` as a list of symbols -> ``HI YOU``. Padding and sentence marks vanish, ``<unk>`` stays."""
    kept = (symbol for symbol in symbols if symbol not in ("<s>", "<pad>", "</s>"))
    return " ".join("".join(kept).replace(WORD_BOUNDARY, " ").split())


def label_line_to_text(line: str) -> str:
    """One line of a ``.ltr`` file as text."""
    return symbols_to_text(line.split())
