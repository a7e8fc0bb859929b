"""Raw text to a folder that fairseq trains on: divide, learn the pieces, encode, write.

The text is read twice, once to divide it and to sample lines for the sentencepiece model, once to encode it. Memory
holds that sample and a few batches, whatever the size of the corpus. The folder appears under its name when all of it
is written.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from d2v_plugin.data.text.binary import TokenWriter, exists
from d2v_plugin.data.text.corpus import BadLines, Corpus, Division, decode, find_sources
from d2v_plugin.data.text.encode import batches, encode_batches, told
from d2v_plugin.data.text.pieces import (
    DICTIONARY_NAME,
    EOS,
    MODEL_NAME,
    UNKNOWN,
    load_pieces,
    read_symbols,
    symbols_of,
    train_pieces,
    write_symbols,
)
from d2v_plugin.errors import UserError

SMALL_CORPUS = 64_000_000
MOST_WORKERS = 8


@dataclass
class BuildOptions:
    """What ``d2v text build`` takes; see its help."""

    inputs: Sequence[str]
    dest: str
    valid: Sequence[str] = ()
    extensions: Sequence[str] | None = None
    valid_share: float = 0.01
    test_share: float = 0.0
    document_lines: int | None = None
    seed: int = 0
    vocab_size: int = 32000
    model_type: str = "unigram"
    lowercase: bool = False
    character_coverage: float = 0.9999
    train_lines: int = 1_000_000
    model: str | None = None
    dictionary: str | None = None
    workers: int | None = None
    max_bad_lines: int = 1000


@dataclass
class SplitCount:
    """What was written to one split; ``unknown`` are ``<unk>`` tokens."""

    sequences: int = 0
    tokens: int = 0
    unknown: int = 0
    documents: int = 0
    symbols: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)  # (V,) frequency of each

    def __str__(self) -> str:
        text = self.tokens - self.sequences  # without </s>
        share = 100 * self.unknown / text if text else 0.0
        return f"{self.documents} documents, {self.sequences} sequences, {self.tokens} tokens, {share:.2f} % unknown"


def build(options: BuildOptions, tell: Callable[[str], None] = print) -> dict[str, SplitCount]:
    """Write ``{train,valid,test}.{bin,idx}``, ``dict.txt`` and ``sentencepiece.model``.

    Raises:
        UserError: one line on what is wrong and what to change.
    """
    parts = {"train": _corpus(options.inputs, options)}
    shares = {} if options.valid else {"valid": options.valid_share}
    shares |= {"test": options.test_share}
    if options.valid:
        parts["valid"] = _corpus(options.valid, options)
    with whole_folder(options.dest) as folder:
        division = Division(shares, options.seed)
        wanted = 0 if options.model else options.train_lines
        sample = _survey(parts["train"], division, wanted, options)
        processor = load_pieces(options.model or _train(sample, options, tell))
        model = processor.serialized_model_proto()
        symbols = read_symbols(options.dictionary) if options.dictionary else symbols_of(processor)
        (folder / MODEL_NAME).write_bytes(model)
        bad, counts = BadLines(options.max_bad_lines), {}
        for name, corpus in parts.items():
            split_of = division.split if name == "train" else (lambda key, name=name: name)
            workers = workers_for(options.workers, corpus)
            counts |= encode(corpus, split_of, model, symbols, folder, workers, bad)
        for split in ("train", *(["valid"] if options.valid else [])):
            if split not in counts:
                raise UserError(f"no line of the {split} text can be used ({bad.summary() or 'it is empty'})")
        if options.dictionary:
            shutil.copyfile(options.dictionary, folder / DICTIONARY_NAME)
        else:
            write_symbols(folder / DICTIONARY_NAME, symbols, counts["train"].symbols.tolist())
    for split in sorted(counts, key=("train", "valid", "test").index):
        tell(f"{Path(options.dest, split)}.bin: {counts[split]}")
    tell(f"{Path(options.dest, DICTIONARY_NAME)}: {len(symbols)} symbols with fairseq's four")
    if bad.kinds:
        tell(bad.summary())
    return counts


def _corpus(paths: Sequence[str], options: BuildOptions) -> Corpus:
    extensions = {"extensions": options.extensions} if options.extensions else {}
    corpus = Corpus(find_sources(paths, **extensions), options.document_lines)
    if not corpus.total_bytes:
        raise UserError(f"{', '.join(map(str, paths))}: no text, the files are empty; give others")
    return corpus


def workers_for(asked: int | None, corpus: Corpus) -> int:
    """As asked, else one for what is done before processes have started, else one for each core, up to 8."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if corpus.total_bytes < SMALL_CORPUS else min(cores, MOST_WORKERS)


def _survey(corpus: Corpus, division: Division, wanted: int, options: BuildOptions) -> list[str]:
    """Count documents by split, and sample ``wanted`` training lines, each with the same chance.

    Raises:
        UserError: no documents, too few to divide, or too many bad lines in the sample.
    """
    bad = BadLines(options.max_bad_lines, shown=0)  # what the encoding meets again is told there
    draw, sample, seen, split = random.Random(options.seed), [], 0, "train"
    for piece in told(corpus.pieces(bad), corpus, "looked at"):
        if piece.starts:
            split = division.survey(piece.key)
        if split != "train" or not wanted:
            continue
        for number, line in enumerate(piece.lines, piece.line):
            seen += 1
            place = len(sample) if len(sample) < wanted else draw.randrange(seen)
            if place < wanted:
                text, fault = decode(line)
                if fault:
                    bad.record(fault, piece.path, number)
                    continue
                sample[place : place + 1] = [text]
    if not division.documents:
        raise UserError(f"{corpus.sources[0]}: holds nothing but blank lines; give a sentence or a paragraph a line")
    division.settle()
    return sample


def _train(sample: list[str], options: BuildOptions, tell: Callable[[str], None]) -> bytes:
    if not sample:
        raise UserError("no training line can be used, none is UTF-8 text; convert it (`iconv -f latin1 -t utf-8`)")
    began = time.monotonic()
    model = train_pieces(
        sample,
        options.vocab_size,
        options.model_type,
        lowercase=options.lowercase,
        character_coverage=options.character_coverage,
    )
    tell(f"{MODEL_NAME}: {options.model_type} from {len(sample)} lines, {time.monotonic() - began:.1f} s")
    return model


def encode(
    corpus: Corpus,
    split_of: Callable[[str], str],
    model: bytes,
    symbols: list[str],
    folder: Path,
    workers: int,
    bad: BadLines,
) -> dict[str, SplitCount]:
    """Write every split that gets a line to ``folder``; what was written, by split."""
    writers: dict[str, TokenWriter] = {}
    counts: dict[str, SplitCount] = {}
    with contextlib.ExitStack() as stack:
        found = encode_batches(batches(corpus, split_of, bad), model, symbols, workers)
        for batch, encoded in told(found, corpus, "encoded"):
            for position, fault in encoded.bad:
                bad.record(fault, *batch.origin(position))
            if not len(encoded.sizes):
                continue
            if batch.split not in writers:
                writers[batch.split] = TokenWriter(folder / batch.split, len(symbols))
                stack.callback(writers[batch.split].discard)
                counts[batch.split] = SplitCount(documents=1, symbols=np.zeros(len(symbols), np.int64))
            writers[batch.split].add(encoded.tokens, encoded.sizes)
            count = counts[batch.split]
            count.symbols += np.bincount(encoded.tokens, minlength=len(symbols))
            count.documents += sum(not line for line in batch.lines)
        for split, writer in writers.items():
            writer.close()
            counts[split].sequences, counts[split].tokens = writer.sequences, writer.tokens
            counts[split].unknown = int(counts[split].symbols[UNKNOWN])
            counts[split].symbols[EOS] = 0  # not a piece
    return counts


def encode_text(
    inputs: Sequence[str],
    data: str | os.PathLike,
    name: str,
    *,
    dest: str | os.PathLike | None = None,
    extensions: Iterable[str] | None = None,
    document_lines: int | None = None,
    workers: int | None = None,
    max_bad_lines: int = 1000,
    tell: Callable[[str], None] = print,
) -> SplitCount:
    """Write ``NAME.bin`` and ``NAME.idx`` with the model and the dictionary of ``data``.

    Raises:
        UserError: ``data`` lacks one of the two, the split exists, or no line can be used.
    """
    data, dest = Path(data), Path(dest or data)
    model = load_pieces(data / MODEL_NAME).serialized_model_proto()
    symbols = read_symbols(data / DICTIONARY_NAME)
    if exists(dest / name):
        raise UserError(f"{dest / name}.bin exists; choose another --name or --dest, or remove it")
    sources = find_sources(inputs, extensions) if extensions else find_sources(inputs)
    corpus, bad = Corpus(sources, document_lines), BadLines(max_bad_lines)
    dest.mkdir(parents=True, exist_ok=True)
    counts = encode(corpus, lambda key: name, model, symbols, dest, workers_for(workers, corpus), bad)
    if name not in counts:
        raise UserError(f"{', '.join(map(str, inputs))}: no line can be used ({bad.summary() or 'it is empty'})")
    tell(f"{dest / name}.bin: {counts[name]}")
    if bad.kinds:
        tell(bad.summary())
    return counts[name]


@contextlib.contextmanager
def whole_folder(dest: str | os.PathLike) -> Iterator[Path]:
    """A folder to write to, which gets the name ``dest`` at the end; after an error nothing of it is left.

    Raises:
        UserError: ``dest`` is a file, or a folder that holds something.
    """
    dest = Path(dest).resolve()
    if dest.exists() and not dest.is_dir():
        raise UserError(f"--dest {dest} is a file; name a folder")
    if dest.is_dir() and any(dest.iterdir()):
        raise UserError(f"--dest {dest} is not empty; choose another folder, or remove this one")
    part = dest.with_name(f"{dest.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        if dest.is_dir():
            dest.rmdir()
        part.rename(dest)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
