"""Fixtures of the tiny corpus and checkpoints in ``tiny_speech.py``."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # makes `import tiny_speech` work in importlib mode

from tiny_speech import Corpus, write_corpus, write_ctc, write_pretrained  # noqa: E402


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def pretrained(tmp_path) -> Path:
    return write_pretrained(tmp_path / "pretrained.pt")


@pytest.fixture
def finetuned(tmp_path, corpus) -> Path:
    return write_ctc(tmp_path / "finetuned.pt", corpus.folder / "dict.ltr.txt")
