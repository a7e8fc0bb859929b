"""Word and character error rates over a corpus, through jiwer (pure Python on a wheel, nothing to build)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from d2v_plugin.errors import UserError


@dataclass(frozen=True)
class ErrorRate:
    """Edits over reference units, summed over the corpus (not a mean of utterances).

    ``rate`` is a fraction: 0.25 means 25 %. It may exceed 1 when much is inserted.
    """

    substitutions: int
    insertions: int
    deletions: int
    units: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        return self.errors / self.units if self.units else float("nan")

    def describe(self, name: str, unit: str) -> str:
        """One line: ``WER  12.50 %  (1 substituted, 0 inserted, 0 deleted of 8 words)``."""
        return (
            f"{name} {100 * self.rate:6.2f} %  ({self.substitutions} substituted, {self.insertions} inserted, "
            f"{self.deletions} deleted of {self.units} {unit})"
        )


@dataclass(frozen=True)
class Scores:
    """Word and character error rate of one decoded set."""

    words: ErrorRate
    characters: ErrorRate


def _rate(measured) -> ErrorRate:
    return ErrorRate(
        measured.substitutions,
        measured.insertions,
        measured.deletions,
        measured.hits + measured.substitutions + measured.deletions,
    )


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Scores:
    """Compare texts already split into words by single spaces; the case is as it stands.

    The character rate counts the space between words as a character, as is usual. An utterance whose
    reference is empty adds its whole hypothesis as insertions.

    Raises:
        ValueError: nothing to score or different counts.
        UserError: the references are all empty.
    """
    import jiwer

    if len(references) != len(hypotheses) or not references:
        raise ValueError(
            f"need one hypothesis a reference and at least one, got {len(references)} references "
            f"and {len(hypotheses)} hypotheses"
        )
    if not any(reference.strip() for reference in references):
        raise UserError(f"all {len(references)} references are empty; check the label file")
    return Scores(
        words=_rate(jiwer.process_words(list(references), list(hypotheses))),
        characters=_rate(jiwer.process_characters(list(references), list(hypotheses))),
    )
