"""Labelled sentences and pairs as fairseq's ``sentence_prediction`` reads them.

Below a folder: ``input0/`` and, for pairs, ``input1/`` with ``dict.txt`` and token files of each split, a sentence and
``</s>`` each; ``label/`` with ``dict.txt`` and token files of one label and ``</s>`` each, or, for a regression,
``SPLIT.label`` with a number a line.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2v_plugin.data.text.binary import TokenWriter
from d2v_plugin.data.text.encode import PieceEncoder
from d2v_plugin.data.text.pieces import (
    DICTIONARY_NAME,
    EOS,
    MODEL_NAME,
    SPECIALS,
    UNKNOWN,
    load_pieces,
    read_symbols,
    write_symbols,
)
from d2v_plugin.errors import UserError

# <s> before the first sentence, </s> before the second
BEFORE_ONE, BEFORE_TWO = 1, 2
AT_ONCE = 10_000


@dataclass(frozen=True)
class Sample:
    """``texts``: one sentence or two; ``label``: its class, the value of a regression, or None where it has none."""

    texts: tuple[str, ...]
    label: str | float | None


@dataclass
class SplitCount:
    """What was written of a split."""

    samples: int = 0
    cut: int = 0
    tokens: int = 0
    unknown: int = 0
    longest: int = 0
    labels: Counter | None = None

    def __str__(self) -> str:
        parts = [f"{self.samples} samples, longest {self.longest} tokens"]
        parts += [f"{100 * self.unknown / max(self.tokens, 1):.2f} % unknown"]
        parts += [f"{self.cut} cut"] if self.cut else []
        if self.labels:
            parts.append(", ".join(f"{count} {label}" for label, count in sorted(self.labels.items())))
        return "; ".join(parts)


class TextEncoder:
    """Sentences to the token numbers of a pre-trained model.

    Args:
        encode: texts to ``(tokens end to end, sizes)``, each closed by ``</s>``.
        dictionary: the ``dict.txt`` whose numbers those are.
    """

    def __init__(self, encode, dictionary: Path):
        self.encode, self.dictionary = encode, dictionary
        self.symbols = read_symbols(dictionary)

    @classmethod
    def of_folder(cls, text: Path) -> TextEncoder:
        """With the sentencepiece model and the dictionary of a folder that ``d2v text build`` wrote.

        Raises:
            UserError: one of the two is missing.
        """
        if not text.is_dir():
            raise UserError(f"{text}: this folder does not exist; give the one that `d2v text build` wrote")
        symbols = read_symbols(text / DICTIONARY_NAME)
        pieces = PieceEncoder(load_pieces(text / MODEL_NAME).serialized_model_proto(), symbols)
        return cls(pieces.encode, text / DICTIONARY_NAME)

    @classmethod
    def of_gpt2(cls, encoder_json: Path, vocab_bpe: Path, dictionary: Path) -> TextEncoder:
        """With GPT-2's byte pairs, as RoBERTa and the published data2vec models of text have them.

        Raises:
            UserError: a file is missing, or is not what its name says.
        """
        for path in (encoder_json, vocab_bpe):
            if not path.is_file():
                raise UserError(f"{path}: this file does not exist; give encoder.json, vocab.bpe and dict.txt of GPT-2")
        from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

        try:
            pairs = get_encoder(str(encoder_json), str(vocab_bpe))
        except (ValueError, UnicodeError, IndexError) as error:
            raise UserError(f"{encoder_json} and {vocab_bpe} are not GPT-2's byte pairs ({error})") from error
        numbers = {symbol: index for index, symbol in enumerate(read_symbols(dictionary))}

        def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            found = [[numbers.get(str(pair), UNKNOWN) for pair in pairs.encode(text)] + [EOS] for text in texts]
            sizes = np.array([len(tokens) for tokens in found], np.int32)
            return np.array([token for tokens in found for token in tokens], np.int64), sizes

        return cls(encode, dictionary)


def write_split(
    folder: Path,
    split: str,
    samples: Sequence[Sample],
    encoder: TextEncoder,
    classes: Sequence[str] | None,
    max_positions: int = 512,
) -> SplitCount:
    """Write one split; sentences too long for the model lose their ends, of a pair the longer one first.

    Args:
        samples: all with as many texts, all with a label or none; of ``classes``, or numbers where that is None.
        max_positions: tokens that a model reads, ``<s>`` and ``</s>`` included.
    """
    if not samples:
        raise UserError(f"{folder}: the {split} split would be empty; give a file with samples")
    width, count = len(samples[0].texts), SplitCount(samples=len(samples))
    room = max_positions - (BEFORE_ONE if width == 1 else BEFORE_TWO)
    if room < 2 * width:
        raise UserError(f"max_positions {max_positions} leaves no room for text; 512 is usual")
    folders = [folder / f"input{k}" for k in range(width)]
    for part in folders:
        part.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(encoder.dictionary, part / DICTIONARY_NAME)
    writers = [TokenWriter(part / split, len(encoder.symbols)) for part in folders]
    try:
        for start in range(0, len(samples), AT_ONCE):
            _write_texts(samples[start : start + AT_ONCE], encoder, writers, room, count)
        for writer in writers:
            writer.close()
    finally:
        for writer in writers:
            writer.discard()
    if samples[0].label is not None:
        _write_labels(folder / "label", split, samples, classes, count)
    return count


def _write_texts(samples, encoder, writers, room, count):
    columns = []
    for column in range(len(writers)):
        tokens, sizes = encoder.encode([sample.texts[column] for sample in samples])
        columns.append(np.split(tokens, np.cumsum(sizes)[:-1]))
    whole = list(zip(*columns, strict=True))
    rows = [cut(row, room) for row in whole]
    count.cut += sum(_sizes(row) != _sizes(kept) for row, kept in zip(whole, rows, strict=True))
    extra = BEFORE_ONE if len(writers) == 1 else BEFORE_TWO
    count.longest = max(count.longest, *(sum(_sizes(row)) + extra for row in rows))
    for writer, parts in zip(writers, zip(*rows, strict=True), strict=True):
        tokens = np.concatenate(parts)
        count.tokens += len(tokens)
        count.unknown += int((tokens == UNKNOWN).sum())
        writer.add(tokens, np.array(_sizes(parts), np.int32))


def _sizes(parts):
    return [len(part) for part in parts]


def cut(row: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """Sentences, each closed by ``</s>``, with ``room`` tokens together at the most: the longer one loses its end."""
    sizes = _sizes(row)
    while sum(sizes) > room:
        longest = int(np.argmax(sizes))
        others = max((size for k, size in enumerate(sizes) if k != longest), default=0)
        sizes[longest] -= max(1, min(sum(sizes) - room, sizes[longest] - others))
    pairs = zip(row, sizes, strict=True)
    return [part if len(part) == size else np.append(part[: size - 1], EOS) for part, size in pairs]


def _write_labels(folder, split, samples, classes, count):
    folder.mkdir(exist_ok=True)
    if classes is None:
        lines = "".join(f"{sample.label:.6g}\n" for sample in samples)
        (folder / f"{split}.label").write_text(lines, encoding="utf-8")
        return
    count.labels = Counter(sample.label for sample in samples)
    numbers = {label: len(SPECIALS) + k for k, label in enumerate(classes)}
    unknown = next((label for label in count.labels if label not in numbers), None)
    if unknown is not None:
        raise UserError(f"{folder}: the label {unknown!r} of the {split} split is none of {', '.join(classes)}")
    labels = np.array([numbers[sample.label] for sample in samples], np.int64)
    writer = TokenWriter(folder / split, len(SPECIALS) + len(classes))
    try:
        writer.add(np.stack([labels, np.full_like(labels, EOS)], 1).reshape(-1), np.full(len(labels), 2, np.int32))
        writer.close()
    finally:
        writer.discard()
    # the order decides which class is which: never that of the counts
    write_symbols(folder / DICTIONARY_NAME, [*SPECIALS, *classes], [0] * len(SPECIALS) + [1] * len(classes))
