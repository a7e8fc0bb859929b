"""What the commands that run a model share: their options, how the model is loaded, and the word about padding."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from d2v_plugin.errors import UserError

if TYPE_CHECKING:
    from d2v_plugin.eval.load import LoadedModel


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --dict, --device, --max-seconds and --max-bad."""
    parser.add_argument("--dict", type=Path, dest="dictionary", help="dict.ltr.txt of training, if it cannot be found")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:N")
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=60.0,
        help="audio a batch, padding counted (default 60); 0: one recording at a time",
    )
    parser.add_argument("--max-bad", type=int, default=10, help="unusable recordings that are skipped; -1: any number")


def check_model_options(args: argparse.Namespace) -> None:
    """Raises ``UserError`` for numbers that cannot be."""
    if not 0 <= args.max_seconds < math.inf:
        raise UserError(f"--max-seconds must be 0 or more and not negative, got {args.max_seconds:g}")
    if args.max_bad < -1:
        raise UserError(f"--max-bad must be -1 (any number), 0 or more, got {args.max_bad}")


def open_model(args: argparse.Namespace, manifest: Path, checkpoint: Path | None = None, **how) -> "LoadedModel":
    """The model of ``checkpoint``, else of ``args.checkpoint``, on ``args.device``; ``how`` goes to ``load_model``."""
    from d2v_plugin.eval.load import load_model, pick_device

    device = pick_device(args.device)
    return load_model(
        checkpoint or args.checkpoint, device=device, dictionary=args.dictionary, manifest=manifest, **how
    )


def print_model(loaded: "LoadedModel", max_seconds: float) -> None:
    """A line about the model and, where batches change its numbers, another about that."""
    print(loaded.describe())
    if loaded.padding_changes_results and max_seconds:
        print(
            "note: this model sees the padding of a batch, which moves the numbers next to it; "
            "--max-seconds 0 takes one recording at a time"
        )
