"""Transcripts: read from files, reduced to words and letters, and written as fairseq label files."""

import csv
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from d2v_plugin.errors import UserError

WORD_END = "|"
TABLES = (".csv", ".tsv", ".jsonl")
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def normalise(text: str) -> str:
    """Upper-case words of letters, digits and apostrophes, one space between them; everything else is a gap.

    Upper case because the dictionaries of published fairseq models are.
    """
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'").upper()
    kept = "".join(c if c.isalnum() or c == "'" or unicodedata.category(c)[0] == "M" else " " for c in text)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


def letters(words: str) -> str:
    """Words as a line of a ``.ltr`` file: ``HI YOU`` becomes ``H I | Y O U |``."""
    return " ".join(" ".join((*word, WORD_END)) for word in words.split())


def spell_numbers(text: str) -> str:
    """English words for the digits in a text.

    Up to a hundred, and whole hundreds below ten thousand, are read as numbers; anything else digit by digit, as
    extensions and passwords are. ``28.8`` is twenty eight point eight.
    """
    text = re.sub(r"(?<=\d)\.(?=\d)", " point ", text)
    return re.sub(r"\d+", lambda match: f" {_spell(match[0])} ", text)


def _spell(digits: str) -> str:
    number = int(digits)
    if digits[0] == "0" and len(digits) > 1:
        return " ".join(ONES[int(digit)] for digit in digits)
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + ("" if number % 10 == 0 else " " + ONES[number % 10])
    if number % 1000 == 0 and number < 20000:
        return f"{ONES[number // 1000]} thousand"
    if number % 100 == 0 and number < 10000:
        return f"{_spell(str(number // 100))} hundred"
    return " ".join(ONES[int(digit)] for digit in digits)


def read_transcripts(path: str | os.PathLike) -> dict[str, str]:
    """Path to text, from a table (.csv, .tsv) or lines of JSON (.jsonl) with the fields ``path`` and ``text``.

    Raises:
        UserError: missing file, another suffix, a row without both fields, or the same path twice.
    """
    path = Path(path)
    if path.suffix not in TABLES:
        raise UserError(f"{path}: transcripts must be a .csv, .tsv or .jsonl file with the fields path and text")
    if not path.is_file():
        raise UserError(f"{path}: this transcript file does not exist")
    result: dict[str, str] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        for line, row in _rows(path, file):
            if not isinstance(row, dict) or not row.get("path") or row.get("text") is None:
                raise UserError(f"{path}:{line}: needs the fields path and text; a table names them in its first line")
            name = str(row["path"])
            if name in result:
                raise UserError(f"{path}:{line}: {name} stands there a second time; keep one of the two")
            result[name] = str(row["text"])
    return result


def _rows(path: Path, file):
    """(line number, fields) of each record."""
    if path.suffix == ".jsonl":
        for line, text in enumerate(file, 1):
            if text.strip():
                try:
                    yield line, json.loads(text)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{line}: not a line of JSON ({error.msg})") from None
        return
    # quotes are ordinary characters in a .tsv
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    reader = csv.DictReader(file, **options)
    for row in reader:
        yield reader.line_num, row


def write_labels(folder: str | os.PathLike, split: str, transcripts: Iterable[str]) -> None:
    """``<split>.ltr`` and ``<split>.wrd``, one line for each entry of ``<split>.tsv``."""
    transcripts = list(transcripts)
    for suffix, lines in (("ltr", map(letters, transcripts)), ("wrd", transcripts)):
        Path(folder, f"{split}.{suffix}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_dictionary(folder: str | os.PathLike, transcripts: Iterable[str]) -> int:
    """``dict.ltr.txt``: each symbol with its count, most frequent first; returns how many symbols."""
    counts = Counter(symbol for words in transcripts for symbol in letters(words).split())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    Path(folder, "dict.ltr.txt").write_text("".join(f"{s} {n}\n" for s, n in ranked), encoding="utf-8")
    return len(ranked)
