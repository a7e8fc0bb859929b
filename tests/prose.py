"""Text that a small sentencepiece model can learn from: sentences out of a few dozen stems and endings, by seed."""

import random
from pathlib import Path

STEMS = "walk talk house garden letter wonder open listen answer morning winter river window silver gentle".split()
ENDINGS = ("", "", "s", "ed", "ing", "er", "ness", "ly")
SMALL = "the a of to and in it was that with for her his not but".split()


def sentence(draw: random.Random) -> str:
    """Three to twelve words, a capital and a full stop."""
    words = [
        draw.choice(SMALL) if draw.random() < 0.4 else draw.choice(STEMS) + draw.choice(ENDINGS)
        for _ in range(draw.randint(3, 12))
    ]
    return " ".join(words).capitalize() + draw.choice(".!?")


def documents(count: int, lines: int = 8, seed: int = 0) -> list[list[str]]:
    """``count`` documents of ``lines`` sentences."""
    draw = random.Random(seed)
    return [[sentence(draw) for _ in range(lines)] for _ in range(count)]


def write_documents(path: Path, found: list[list[str]]) -> Path:
    """One sentence a line, a blank line between documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join("\n".join(lines) for lines in found) + "\n", encoding="utf-8")
    return path
