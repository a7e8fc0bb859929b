"""What frozen features of text know: a linear probe of each layer, beside the untrained network and a bag of pieces.

A probe is a table of passages, of which all or some words are meant, with a label and the document they come from. It
says which rows the probe is fitted on and which it is scored on; the penalty is chosen on a fifth of the fitting rows,
whole documents or, where words are meant, all rows of a word, because words that are scored may be new as well. The bag
of pieces is the same probe on how often each sentencepiece piece occurs in the part meant: what can be known without
order and without anything learned. Passages of one document are not independent, so the standard error is that of a
bootstrap over documents.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from d2v_plugin.errors import UserError
from d2v_plugin.eval.knn import K, knn_accuracy
from d2v_plugin.eval.linear_probe import fit_linear_probe
from d2v_plugin.eval.text_features import Passage, TextModel, Tokens, layer_means

COLUMNS = ("split", "label", "document", "start", "end", "text")
FIT, SCORE = "fit", "score"
# one of so many parts of the fitting rows chooses the penalty
FOLDS = 5
# pieces that occur in fewer passages are left out of the bag
RARE = 3
BOOTSTRAP_ROUNDS = 200
LEAST = 20


@dataclass(frozen=True)
class Example:
    """A row of a probe's table."""

    split: str
    label: str
    document: str
    passage: Passage

    @property
    def chooses(self) -> bool:
        """Whether this fitting row chooses the penalty, by its document or the words meant: alike for every network."""
        passage = self.passage
        key = self.document if passage.end is None else " ".join(passage.words[passage.start : passage.end])
        return int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest(), 16) % FOLDS == 0


@dataclass(frozen=True)
class Score:
    """``accuracy``: fraction that is right; ``error``: its standard error. ``features``: "layer n" or "pieces";
    ``knn``: fraction that the nearest neighbours among the fitting rows tell."""

    features: str
    accuracy: float
    error: float
    knn: float | None = None


@dataclass(frozen=True)
class ProbeResult:
    """The scores of one probe for one network; ``chance``: always the most frequent label of the fitting part."""

    name: str
    fitted: int
    scored: int
    classes: int
    chance: float
    scores: list[Score]


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """A tab-separated table; words are joined by single blanks, ``start`` and ``end`` count words."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write("\t".join(COLUMNS) + "\n")
        for example in examples:
            passage = example.passage
            end = len(passage.words) if passage.end is None else passage.end
            fields = (example.split, example.label, example.document, passage.start, end, " ".join(passage.words))
            file.write("\t".join(map(str, fields)) + "\n")


def read_examples(path: Path) -> list[Example]:
    """The rows of a probe's table.

    Raises:
        UserError: no such file, or a row that is not of this form.
    """
    if not path.is_file():
        raise UserError(f"{path}: this probe does not exist; examples/text/prepare_prose.py writes some")
    found = []
    with open(path, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            if number == 1 and tuple(row) == COLUMNS:
                continue
            if number == 1 or len(row) != len(COLUMNS):
                raise UserError(f"{path}:{number}: expected the columns {', '.join(COLUMNS)}, separated by tabs")
            split, label, document, start, end, text = row
            words = tuple(text.split(" "))
            if split not in (FIT, SCORE) or not (start.isdigit() and end.isdigit()):
                raise UserError(f"{path}:{number}: split is {FIT} or {SCORE}, start and end are numbers of words")
            first, last = int(start), int(end)
            if not 0 <= first < last <= len(words):
                raise UserError(f"{path}:{number}: words {first} to {last} are meant of {len(words)}; correct the row")
            whole = (first, last) == (0, len(words))
            found.append(Example(split, label, document, Passage(words, first, None if whole else last)))
    return found


class Probe:
    """A table with its tokens.

    Args:
        longest: tokens of a passage; what lies behind is cut off, and an example whose part is cut off left out.
    Raises:
        UserError: too few examples, or only one label.
    """

    def __init__(self, name: str, examples: Sequence[Example], loaded: TextModel, longest: int | None = None):
        longest = min(longest or loaded.longest, loaded.longest)
        pairs = [(example, loaded.tokenizer(example.passage, longest)) for example in examples]
        kept = [(example, tokens) for example, tokens in pairs if tokens is not None]
        self.name, self.left_out = name, len(pairs) - len(kept)
        self.tokens: list[Tokens] = [tokens for _, tokens in kept]
        self.scored = np.array([example.split == SCORE for example, _ in kept], bool)
        self.documents = np.array([example.document for example, _ in kept])
        self.labels = np.array([example.label for example, _ in kept])
        self.names = np.unique(self.labels[~self.scored]) if len(kept) else np.array([])
        known = np.isin(self.labels, self.names)
        counts = int((~self.scored).sum()), int(self.scored.sum())
        if min(counts) < LEAST:
            raise UserError(f"probe {name}: needs {LEAST} passages to fit and to score, got {counts[0]}, {counts[1]}")
        if len(self.names) < 2 or not known.all():
            raise UserError(f"probe {name}: needs two labels or more, and each of them among the fitting passages")
        self.targets = np.searchsorted(self.names, self.labels)
        self.choosing = ~self.scored & np.array([example.chooses for example, _ in kept])
        self.fitting = ~self.scored & ~self.choosing
        if not (self.choosing.any() and len(np.unique(self.targets[self.fitting])) == len(self.names)):
            raise UserError(
                f"probe {name}: needs more documents (or words meant) to fit on, a fifth of them chooses the penalty"
            )

    @property
    def chance(self) -> float:
        """Fraction that is right when the most frequent label of the fitting part is always the answer."""
        most = np.bincount(self.targets[~self.scored]).argmax()
        return float((self.targets[self.scored] == most).mean())

    def score(self, name: str, features: np.ndarray) -> Score:
        """Fit and score (N, D) features of all examples."""
        x, y = torch.from_numpy(features), torch.from_numpy(self.targets)
        fit, choose, score = (torch.from_numpy(rows) for rows in (self.fitting, self.choosing, self.scored))
        probe = fit_linear_probe(x[fit], y[fit], x[choose], y[choose])
        right = (probe.predict(x[score]).cpu() == y[score]).numpy()
        known = ~score
        near = knn_accuracy(x[known], y[known], x[score], y[score], k=min(K, int(known.sum())))
        return Score(name, float(right.mean()), self._error(right), near)

    def _error(self, right: np.ndarray) -> float:
        _, member = np.unique(self.documents[self.scored], return_inverse=True)
        totals, hits = np.bincount(member), np.bincount(member, right)
        draws = np.random.default_rng(0).integers(0, len(totals), (BOOTSTRAP_ROUNDS, len(totals)))
        return float((hits[draws].sum(1) / totals[draws].sum(1)).std())

    def pieces(self, symbols: int) -> np.ndarray:
        """(N, D) float32: the logarithm of one plus how often each piece occurs in the part meant."""
        bag = np.zeros((len(self.tokens), symbols), np.float32)
        for row, tokens in zip(bag, self.tokens, strict=True):
            np.add.at(row, tokens.ids[tokens.start : tokens.end], 1)
        return np.log1p(bag[:, (bag[self.fitting] > 0).sum(0) >= RARE])


def probe_network(probe: Probe, loaded: TextModel, layers: Sequence[int], pieces: bool) -> ProbeResult:
    """Score the layers of a network and, where asked for, the bag of pieces, which is the same for every network."""
    scores = [probe.score("pieces", probe.pieces(len(loaded.tokenizer.symbols)))] if pieces else []
    found = layer_means(loaded, probe.tokens, layers) if layers else {}
    scores += [probe.score(f"layer {layer}", means) for layer, means in found.items()]
    counts = int((~probe.scored).sum()), int(probe.scored.sum())
    return ProbeResult(probe.name, *counts, len(probe.names), probe.chance, scores)


def format_table(trained: Sequence[ProbeResult], untrained: Sequence[ProbeResult] | None) -> str:
    """One block a probe: what is right by chance, from the pieces, and from each layer."""
    lines = []
    for index, result in enumerate(trained):
        other = {score.features: score for score in untrained[index].scores} if untrained else {}
        lines.append(f"{result.name}: {result.classes} labels, fitted on {result.fitted}, scored on {result.scored}")
        lines.append(f"  {'chance':<10} {100 * result.chance:5.1f} %")
        for score in result.scores:
            line = f"  {score.features:<10} {_percent(score)}"
            if score.features in other:
                line += f"   untrained {_percent(other[score.features])}"
            lines.append(line)
    return "\n".join(lines)


def _percent(score: Score) -> str:
    near = "" if score.knn is None else f" (neighbours {100 * score.knn:.1f} %)"
    return f"{100 * score.accuracy:5.1f} +- {100 * score.error:.1f} %{near}"
