"""Prepare English prose for the demo, with probes: Jane Austen's six novels, or your own text.

    python examples/text/prepare_prose.py --dest DIR
    python examples/text/prepare_prose.py --dest DIR --data /path/to/texts

The first fetches two Debian packages with ``apt-get download`` and unpacks them with ``dpkg -x``; neither needs root.
r-cran-janeaustenr holds the novels (720,000 words, in the public domain), wordnet-base the dictionary that says which
words are only ever nouns, verbs, adjectives or adverbs.

Written below DIR: ``train/`` and ``valid/``, a paragraph a line and a blank line between chapters; and ``probes/``:

* ``word_class.tsv``: the part of speech of a word in its passage, for words that WordNet knows as one only. The words
  that are scored are never among those a probe is fitted on, so what it finds was learned without labels.
* ``speech.tsv``: whether a passage was between quotation marks, which are taken out, or told by the author. Few are
  labelled.

A seventh of the chapters, by their text, is held out: neither the network nor a probe is trained on it. Your own text
(a paragraph a line, a blank line between documents) is divided the same way; it should be English.
"""

import argparse
import hashlib
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from r_data import read_data
from word_classes import WordClasses

from d2v_plugin.data.audio.building import Recording, divide
from d2v_plugin.data.debian import fetch_packages
from d2v_plugin.data.text.corpus import BadLines, Corpus, decode, find_sources
from d2v_plugin.errors import UserError
from d2v_plugin.eval.text_features import Passage
from d2v_plugin.eval.text_probe import FIT, SCORE, Example, write_examples

NOVELS, DICTIONARY = "r-cran-janeaustenr", "wordnet-base"
NOVELS_DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata"
DICTIONARY_DATA = "usr/share/wordnet"
INSTEAD = "or use text of your own: make demo MODALITY=text DATA=/path/to/texts"

HEADING = re.compile(r"^ *chapter +([ivxlc]+|\d+)\.?\s*$", re.IGNORECASE | re.MULTILINE)
# lines of the edition: volumes, its notes, and the end
NOT_PROSE = re.compile(r"(volume [ivx]+|finis|the end|\[.*\]?|\*.*)$", re.IGNORECASE)
APPENDIX = "A NOTE ON THE TEXT"

HELD_OUT = 1 / 7
PASSAGE_WORDS = 30
SHORTEST_SPEECH = 10
SPEECH_LABELS = 100  # of each, that a probe of speech is fitted on
SHORTEST_WORD = 4
MOST_OF_A_WORD = 8  # occurrences on each side, so that frequent words do not decide
MOST_OF_A_CLASS = 1000
HELD_OUT_WORDS = 3  # every third word is scored and not fitted


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dest", required=True, type=Path, help="folder to write to")
    parser.add_argument("--data", type=Path, help="your own text, a file or a folder, instead of the novels")
    args = parser.parse_args(argv)
    try:
        prepare(args.dest.resolve(), args.data)
    except UserError as error:
        print(f"prepare_prose: error: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(dest: Path, data: Path | None) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    packages = [DICTIONARY] if data else [NOVELS, DICTIONARY]
    unpacked = fetch_packages(packages, dest, INSTEAD)
    if data:
        found = own_documents(data)
    else:
        print("Novels by Jane Austen (1775-1817), digitised by Project Gutenberg; WordNet 3.0, Princeton University.")
        found = {name: chapters(lines) for name, lines in read_data(unpacked / NOVELS_DATA).items()}
    sides = divided(found)
    write_text(dest, sides)
    classes = WordClasses(unpacked / DICTIONARY_DATA)
    (dest / "probes").mkdir(exist_ok=True)
    probes = {"word_class": word_examples(sides, classes), "speech": speech_examples(sides)}
    for name, examples in probes.items():
        path = dest / "probes" / f"{name}.tsv"
        write_examples(path, examples)
        counts = Counter((example.split, example.label) for example in examples)
        parts = ", ".join(f"{count} {label} to {split}" for (split, label), count in sorted(counts.items()))
        print(f"{path}: {parts or 'nothing found'}")


def chapters(lines: Iterable[str | None]) -> list[list[str]]:
    """The chapters of a novel as paragraphs, without headings and the edition's own lines."""
    text = "\n".join(line or "" for line in lines).partition(APPENDIX)[0]
    pieces = HEADING.split(text)[2::2]  # before the first heading stand title and author
    return [[p for part in re.split(r"\n\s*\n", piece) if (p := paragraph(part))] for piece in pieces]


def paragraph(text: str) -> str:
    """One line, without marks of emphasis; empty for what is no prose."""
    line = " ".join(text.replace("_", "").replace("--", " -- ").split())
    return "" if NOT_PROSE.match(line) else line


def own_documents(data: Path) -> dict[str, list[list[str]]]:
    """Documents by file; lines that are no text are left out."""
    bad, found = BadLines(-1), defaultdict(list)
    for piece in Corpus(find_sources([data])).pieces(bad):
        lines = [text for text, fault in map(decode, piece.lines) if not fault]
        name = re.sub(r"\W+", "_", piece.path.name)
        if piece.starts:
            found[name].append([])
        found[name][-1] += lines
    return {name: [document for document in documents if document] for name, documents in found.items()}


def divided(found: dict[str, list[list[str]]]) -> dict[str, dict[str, list[str]]]:
    """``{"train": {document: paragraphs}, "valid": ...}``; a document is called ``novel.number``."""
    recordings, paragraphs = [], {}
    for name, documents in found.items():
        for number, document in enumerate(documents, 1):
            key = hashlib.md5("\n".join(document).encode(), usedforsecurity=False).hexdigest()
            recordings.append(Recording(f"{name}.{number}", len(document), key=key))
            paragraphs[f"{name}.{number}"] = document
    splits = divide(recordings, {"valid": HELD_OUT})
    if not splits["valid"]:
        raise UserError(
            f"the text holds {len(recordings)} different documents, too few to hold one out; put a blank line between "
            "documents, or give more files"
        )
    return {split: {r.name: paragraphs[r.name] for r in chosen} for split, chosen in splits.items()}


def write_text(dest: Path, sides: dict[str, dict[str, list[str]]]) -> None:
    for split, documents in sides.items():
        folder = dest / split
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.txt"):  # of other text, prepared here before
            old.unlink()
        files = defaultdict(list)
        for name, lines in documents.items():
            files[name.rpartition(".")[0]].append("\n".join(lines))
        for name, texts in files.items():
            (folder / f"{name}.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        words = sum(len(line.split()) for lines in documents.values() for line in lines)
        print(f"{folder}: {len(documents)} documents, {words} words")


def probe_side(split: str) -> str:
    return FIT if split == "train" else SCORE


def word_examples(sides: dict[str, dict[str, list[str]]], classes: WordClasses) -> list[Example]:
    """Words of one class only, each in the passage it stands in; as many of each class."""
    draw, examples = random.Random(1), []
    for split, documents in sides.items():
        side = probe_side(split)
        found = [(name, words) for name, lines in documents.items() for words in passages(lines)]
        draw.shuffle(found)
        rows, seen = defaultdict(list), Counter()
        for name, words in found:
            for place, word in enumerate(words):
                label = classes.only_class(word)
                if label is None or len(word) < SHORTEST_WORD or held_out(word) != (side == SCORE):
                    continue
                seen[word] += 1
                if seen[word] <= MOST_OF_A_WORD:
                    rows[label].append(Example(side, label, name, Passage(words, place, place + 1)))
        examples += balanced(rows, MOST_OF_A_CLASS, draw)
    return examples


def balanced(rows: dict[str, list[Example]], most: int, draw: random.Random) -> list[Example]:
    """As many of each label, ``most`` at most; nothing where there is one label only."""
    size = min(most, *map(len, rows.values())) if len(rows) > 1 else 0
    return [example for label in sorted(rows) for example in draw.sample(rows[label], size)]


def held_out(word: str) -> bool:
    """A fixed third of all words."""
    digest = hashlib.md5(word.encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % HELD_OUT_WORDS == 0


def passages(lines: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Paragraphs in passages of equal size."""
    for line in lines:
        words = line.split()
        yield from (tuple(words[k : k + PASSAGE_WORDS]) for k in range(0, len(words), PASSAGE_WORDS))


def speech_examples(sides: dict[str, dict[str, list[str]]]) -> list[Example]:
    """The beginnings of what is said and what is told, as many of each; few to fit on."""
    draw, examples = random.Random(1), []
    for split, documents in sides.items():
        found = defaultdict(list)
        for name, lines in documents.items():
            for label, words in spoken(lines):
                found[label].append(Example(probe_side(split), label, name, Passage(words)))
        examples += balanced(found, SPEECH_LABELS if split == "train" else MOST_OF_A_CLASS, draw)
    return examples


def spoken(lines: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(label, words) of each stretch inside or outside of quotation marks, where they come in pairs."""
    for line in lines:
        stretches = line.split('"')
        if len(stretches) % 2 == 0:
            continue
        for number, stretch in enumerate(stretches):
            words = tuple(stretch.split()[:PASSAGE_WORDS])
            if len(words) >= SHORTEST_SPEECH:
                yield "speech" if number % 2 else "narration", words


if __name__ == "__main__":
    sys.exit(main())
