"""Fixtures of the tiny corpus and checkpoints in ``tiny_speech.py``."""

from pathlib import Path

import pytest
from tiny_speech import Corpus, write_corpus, write_ctc, write_pretrained


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def pretrained(tmp_path) -> Path:
    return write_pretrained(tmp_path / "pretrained.pt")


@pytest.fixture
def finetuned(tmp_path, corpus) -> Path:
    return write_ctc(tmp_path / "finetuned.pt", corpus.folder / "dict.ltr.txt")
