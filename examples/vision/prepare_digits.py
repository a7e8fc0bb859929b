"""Prepare real images for the demo: the handwritten digits that come with scikit-learn, as a folder of PNG files.

    python examples/vision/prepare_digits.py --dest DIR

scikit-learn's package holds 1,797 digits of 8 x 8 pixels and 17 levels (the test set of "Optical recognition of
handwritten digits", E. Alpaydin and C. Kaynak, UCI 1998, CC BY 4.0), so nothing is fetched.

Written below DIR: ``{train,valid,test}/{0..9}/NNNN.png``, 8-bit grey, with the digit's number in scikit-learn's order.
The division depends on the pixels only: a fifth of the images goes to test and a tenth to valid, and images that are
the same pixel by pixel stay together.

``--labels 10 100`` adds folders ``train_10_1``, ``train_10_2`` ..., each with that many images of train, as many of
each digit, for training with few labels. ``--draws`` says how many folders of each size, drawn independently.
"""

import argparse
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from d2v_plugin.data.audio.building import share
from d2v_plugin.errors import UserError

SPLITS = ("train", "valid", "test")
TEST_SHARE, VALID_SHARE = 0.2, 0.1
LEVELS = 16  # pixels are 0 to this


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dest", required=True, type=Path, help="folder to write to")
    parser.add_argument("--labels", type=int, nargs="+", default=[], metavar="N", help="sizes of small training parts")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="small parts of each size (default 3)")
    args = parser.parse_args(argv)
    try:
        counts = write_digits(args.dest, *load_digits())
        for labels in args.labels:
            for draw in range(1, args.draws + 1):
                write_few(args.dest, labels, draw)
    except UserError as error:
        print(f"prepare_digits: error: {error}", file=sys.stderr)
        return 2
    print(f"{args.dest}: " + ", ".join(f"{counts[split]} images in {split}" for split in SPLITS))
    return 0


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """(N, 8, 8) levels of 0 to 16, and the digits (N,)."""
    try:
        from sklearn import datasets
    except ImportError:
        raise UserError("scikit-learn is missing; `make setup` installs it, or: pip install scikit-learn") from None
    digits = datasets.load_digits()
    return digits.images, digits.target


def write_digits(dest: Path, images: np.ndarray, digits: np.ndarray) -> Counter:
    """Write the splits anew; returns how many images each has."""
    levels = (images * 255 / LEVELS).round().astype(np.uint8)
    counts = Counter()
    try:
        for split in SPLITS:
            if (dest / split).is_dir():
                shutil.rmtree(dest / split)
        for number, (picture, digit) in enumerate(zip(levels, digits, strict=True)):
            split = split_of(picture)
            folder = dest / split / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{number:04d}.png")
            counts[split] += 1
    except OSError as error:
        raise UserError(f"{dest}: cannot be written ({error.strerror}); choose another --dest") from None
    return counts


def write_few(dest: Path, labels: int, draw: int) -> None:
    """Copy ``labels`` images of train, as many of each digit, to ``train_<labels>_<draw>``; anew."""
    folder = dest / f"train_{labels}_{draw}"
    shutil.rmtree(folder, ignore_errors=True)
    digits = {path.name: sorted(path.iterdir()) for path in (dest / "train").iterdir()}
    each, uneven = divmod(labels, len(digits))
    fewest = min(map(len, digits.values()))
    if uneven or not 0 < each <= fewest:
        raise UserError(f"--labels {labels}: give multiples of {len(digits)} up to {len(digits) * fewest}")
    for digit, images in digits.items():
        (folder / digit).mkdir(parents=True)
        for image in sorted(images, key=lambda path: share(path.name, draw))[:each]:
            shutil.copy(image, folder / digit)


def split_of(picture: np.ndarray) -> str:
    """The split of an image, a function of its pixels."""
    place = share(picture.tobytes().hex())
    if place < TEST_SHARE:
        return "test"
    return "valid" if place < TEST_SHARE + VALID_SHARE else "train"


if __name__ == "__main__":
    sys.exit(main())
