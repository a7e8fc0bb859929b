"""Data of each modality as small as a training run takes: recordings, images, binarised text."""

from pathlib import Path

import numpy as np
import torch
from audio_corpus import Corpus
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import make_builder
from PIL import Image

LABELS = ("A B | C |", "C A B |", "B A | A |", "A |")
CLASSES = ("0", "1,2", "2", "0,1")
SPLITS = ("train", "valid", "test", "dev_other", "eval")
WORDS = 30


def write_speech(folder: Path) -> None:
    """Four recordings of about half a second with transcripts and classes, as every split that a YAML file may name."""
    corpus = Corpus(folder)
    for n in range(len(LABELS)):
        corpus.add(f"{n}.wav", 8000 + 800 * n)
    for split in SPLITS:
        corpus.manifest(f"{split}.tsv")
        (folder / f"{split}.ltr").write_text("\n".join(LABELS) + "\n")
        (folder / f"{split}.lbl").write_text("".join(f"0\t1\t{classes}\n" for classes in CLASSES))
    (folder / "dict.ltr.txt").write_text("".join(f"{symbol} 1\n" for symbol in "|ABC"))
    (folder / "label_descriptors.csv").write_text("".join(f"{n},/m/{n},class {n}\n" for n in range(3)))


def write_images(folder: Path) -> None:
    """Two classes of four images of 60 x 50 noise, as train and valid, in the layout of ImageNet."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for n in range(4):
                pixels = rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{n}.png")


def write_text(folder: Path) -> None:
    """Forty lines of random words, binarised by fairseq, as train and valid."""
    rng = np.random.default_rng(0)
    dictionary = Dictionary()
    for n in range(WORDS):
        dictionary.add_symbol(f"w{n}")
    dictionary.save(str(folder / "dict.txt"))
    for split in ("train", "valid"):
        builder = make_builder(str(folder / f"{split}.bin"), impl="mmap", vocab_size=len(dictionary))
        for length in rng.integers(5, 20, 40):
            words = rng.integers(dictionary.nspecial, len(dictionary), length)
            builder.add_item(torch.tensor([*words, dictionary.eos()], dtype=torch.int32))
        builder.finalize(str(folder / f"{split}.idx"))


def write_glue(folder: Path) -> None:
    """GLUE's tasks and text to pre-train on, see ``tiny_glue``."""
    from tiny_glue import write_all

    write_all(folder)


WRITERS = {"speech": write_speech, "vision": write_images, "text": write_text, "glue": write_glue}


def write_data(folder: Path, modality: str = "speech") -> Path:
    """Fill ``folder``, which exists, for "speech", "vision", "text" or "glue"; returns it."""
    WRITERS[modality](folder)
    return folder
