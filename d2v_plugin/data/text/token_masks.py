"""Which tokens of a text are hidden: fairseq's masks, number by number, from the seed, the epoch and the sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenMasks:
    """Masks for blocks of tokens: single tokens, or spans that may overlap and are cut off at the end.

    Args:
        mask: the symbol ``<mask>``.
        prob: share of the tokens that is chosen, before overlaps; above 0 and below 1.
        length: tokens of a span.
        stdev: of the spans' lengths, tokens; 0 makes them all alike.
        keep: share of the chosen tokens that stays as it is.
        random: share of the chosen tokens that gets a random token instead of ``<mask>``.
        weights: (V,) float64, how probable each symbol is as such a token; None where ``random`` is 0.
        seed: of the training.
    """

    mask: int
    prob: float
    length: int = 1
    stdev: float = 0.0
    keep: float = 0.0
    random: float = 0.0
    weights: np.ndarray | None = None
    seed: int = 1

    def __call__(self, tokens: np.ndarray, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """``(masked, chosen)``: the tokens with masks, (T,) int64, and which were chosen, (T,) bool.

        Args:
            tokens: (T,) int64.
            epoch, index: of the training and of the block; nothing else moves the masks.
        """
        rng = np.random.default_rng(int(hash((self.seed, epoch, int(index))) % 1e6))
        chosen = self._chosen(rng, len(tokens))
        hidden, replaced = self._divided(rng, chosen)
        masked = tokens.copy()
        masked[hidden | replaced] = self.mask
        if replaced.any():
            masked[replaced] = rng.choice(len(self.weights), int(replaced.sum()), p=self.weights)
        return masked, chosen

    def _chosen(self, rng: np.random.Generator, size: int) -> np.ndarray:
        count = int(self.prob * size / self.length + rng.random())  # rounded up as often as the fraction says
        starts = rng.choice(size, count, replace=False)
        lengths = np.full(count, self.length)
        if self.stdev > 0:
            lengths = np.rint(rng.normal(self.length, self.stdev, count)).clip(min=0).astype(np.int64)
        chosen = np.zeros(size, bool)
        for start, length in zip(starts, lengths, strict=True):
            chosen[start : start + length] = True
        return chosen

    def _divided(self, rng: np.random.Generator, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the chosen tokens those that get ``<mask>``, and those that get another one."""
        none = np.zeros_like(chosen)
        either = self.keep + self.random
        if either == 0:
            return chosen, none
        spared = chosen & (rng.random(len(chosen)) < either)
        if self.random == 0:
            return chosen & ~spared, none
        kept = none
        if self.keep > 0:
            kept = spared & (rng.random(len(chosen)) < self.keep / either)
        return chosen & ~spared, spared & ~kept


def replacement_weights(counts: list[int], specials: int, by_frequency: bool) -> np.ndarray:
    """(V,) float64 that sum to 1: all symbols but the first ``specials`` alike, or by how often they occur."""
    weights = np.array(counts, np.float64) if by_frequency else np.ones(len(counts))
    weights[:specials] = 0
    return weights / weights.sum()
