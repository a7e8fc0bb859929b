"""sentencepiece models, and the fairseq dictionary that goes with one.

fairseq numbers symbols by the order of ``dict.txt`` after ``<s> <pad> </s> <unk>``, sentencepiece by the order in its
model; the two meet in the pieces' spelling. A model trained here gives those four the numbers 0 to 3 and is written to
the dictionary in its own order, so that both count alike; any other model is mapped piece by piece, as happens when
``spm_encode`` writes pieces and ``fairseq-preprocess`` looks them up.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from d2v_plugin.errors import UserError

MODEL_NAME, DICTIONARY_NAME = "sentencepiece.model", "dict.txt"
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
EOS, UNKNOWN = SPECIALS.index("</s>"), SPECIALS.index("<unk>")
MODEL_TYPES = ("unigram", "bpe", "char")
OVERWRITE = "#fairseq:overwrite"
# sentencepiece leaves longer training sentences out without a word, which a paragraph may well be
LONGEST_SENTENCE = 4000
# fixed, because sums over threads are taken in their order and the model must not depend on the machine
TRAINING_THREADS = 8


def train_pieces(
    lines: Iterable[str],
    vocab_size: int,
    model_type: str = "unigram",
    *,
    lowercase: bool = False,
    character_coverage: float = 0.9999,
) -> bytes:
    """A sentencepiece model: NFKC normalisation (with case folding where asked for), fairseq's specials as 0 to 3.

    Args:
        vocab_size: pieces, the four specials included.
        character_coverage: portion of the text's characters that get a piece; the rest is unknown.
    Raises:
        UserError: the text does not support that many pieces, or needs more for its characters alone.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for line in lines for part in portions(line)),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(_translated(str(error), vocab_size)) from error
    return model.getvalue()


def portions(line: str, limit: int = LONGEST_SENTENCE) -> Iterator[str]:
    """The line in portions of at most ``limit`` UTF-8 bytes, divided at blanks; one longer word stays whole."""
    while len(line) > limit // 4 and len(line.encode()) > limit:
        head = line.encode()[: limit + 1].decode(errors="ignore")
        cut = head.rfind(" ")
        if cut < 1:
            cut = line.find(" ")
        if cut < 1:
            break
        yield line[:cut]
        line = line[cut + 1 :]
    if line:
        yield line


def _translated(reason: str, vocab_size: int) -> str:
    if most := re.search(r"too high .* <= (\d+)", reason):
        return f"--vocab-size {vocab_size} is more than this text supports; take {most[1]} or fewer, or give more text"
    if least := re.search(r"required_chars\D+\d+ vs (\d+)", reason):
        return (
            f"--vocab-size {vocab_size} is too small: the text's characters and the specials alone are {least[1]}; "
            "raise it, or lower --character-coverage"
        )
    reason = " ".join(reason.split())
    return f"sentencepiece could not train a model: {reason}; give more text or a smaller --vocab-size"


def load_pieces(model: str | os.PathLike | bytes):
    """The sentencepiece processor of a model file, or of its content.

    Raises:
        UserError: no such file, or not a sentencepiece model.
    """
    import sentencepiece

    content, name = (model, "the model") if isinstance(model, bytes) else (None, str(model))
    if content is None:
        if not Path(model).is_file():
            raise UserError(f"{name}: this sentencepiece model does not exist; give the .model file")
        content = Path(model).read_bytes()
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        if processor.get_piece_size() == 0:
            raise RuntimeError("no pieces")
    except RuntimeError as error:
        raise UserError(f"{name}: not a sentencepiece model; give the .model file that spm_train wrote") from error
    return processor


def symbols_of(processor) -> list[str]:
    """fairseq's symbols for a model: the specials, then its pieces in its order, without its control symbols.

    Raises:
        UserError: a piece that fairseq's dictionary file cannot hold.
    """
    pieces = [
        processor.id_to_piece(index)
        for index in range(processor.get_piece_size())
        if not (processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index))
    ]
    for piece in pieces:
        if piece.split() != [piece]:
            raise UserError(
                f"the sentencepiece model has the piece {piece!r}, and fairseq's dictionaries cannot hold blanks; "
                "train a model without it"
            )
    return [*SPECIALS, *(piece for piece in pieces if piece not in SPECIALS)]


def fairseq_ids(processor, symbols: Sequence[str]) -> np.ndarray:
    """(pieces,) int64: fairseq's number of each piece; what the dictionary lacks is unknown."""
    numbers = {symbol: index for index, symbol in enumerate(symbols)}
    pieces = (processor.id_to_piece(index) for index in range(processor.get_piece_size()))
    ids = [numbers.get(piece, UNKNOWN) for piece in pieces]
    return np.array([UNKNOWN if processor.is_unknown(i) else n for i, n in enumerate(ids)], np.int64)


def write_symbols(path: str | os.PathLike, symbols: Sequence[str], counts: Sequence[int]) -> None:
    """``dict.txt``: a line ``piece count`` for each symbol after the specials, which fairseq puts first by itself."""
    skipped = len(SPECIALS)
    rows = zip(symbols[skipped:], counts[skipped:], strict=True)
    Path(path).write_text("".join(f"{symbol} {count}\n" for symbol, count in rows), encoding="utf-8")


def read_symbols(path: str | os.PathLike) -> list[str]:
    """The symbols of a fairseq dictionary in the order of their numbers, specials first.

    Raises:
        UserError: no such file, or a line that is not ``symbol count``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: this dictionary does not exist; give the dict.txt beside the binarised text")
    symbols, known = list(SPECIALS), set(SPECIALS)
    try:
        rows = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8; give the dict.txt beside the binarised text") from error
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        again = row.rstrip().endswith(OVERWRITE)
        symbol, _, count = row.rstrip().removesuffix(OVERWRITE).rstrip().rpartition(" ")
        if not symbol or not count.lstrip("-").isdigit():
            raise UserError(f"{path}:{number}: expected a symbol and its count, got {row.strip()[:60]!r}")
        if symbol in known and not again:
            raise UserError(f"{path}:{number}: {symbol!r} stands there a second time; keep one of the two")
        known.add(symbol)
        # an overwritten symbol keeps its first number as a gap, as in fairseq
        symbols.append(symbol)
    return symbols
