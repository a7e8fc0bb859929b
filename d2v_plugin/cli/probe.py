"""``d2v probe``: linear probes and nearest neighbours on the frozen layers of a model, whatever its data.

Speech, images and text have their own questions and data; the fits (``eval/linear_probe.py``, ``eval/ridge.py``) and
the neighbours (``eval/knn.py``) are shared, and so is the comparison with the same network untrained.
"""

import argparse
import importlib
from pathlib import Path

from d2v_plugin.cli._model_options import add_model_options
from d2v_plugin.errors import UserError

# data that each modality takes, and options that are for it alone
DATA = {
    "AUDIO": "two manifests, to fit on and to score on: TRAIN.tsv TEST.tsv",
    "IMAGE": "one folder with train, valid and test, each CLASS/FILE or tar shards",
    "TEXT": "the folder of binarised text it was trained on, and tables of passages: FOLDER TSV [TSV ...]",
}
OWN = {
    "AUDIO": ("align", "dictionary", "max_seconds", "max_bad"),
    "IMAGE": ("pixel_size",),
    "TEXT": ("max_tokens",),
}
DEFAULTS = {"max_seconds": 60.0, "max_bad": 10, "pixel_size": 16}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register ``d2v probe``."""
    parser = subparsers.add_parser(
        "probe",
        help="linear probes and nearest neighbours on frozen features: speech, images, text",
        description="What the frozen layers of a model know, by a linear probe and by nearest neighbours, beside the "
        "same network untrained. Speech: MFCCs 2-13 from single frames (R2 on the frames of other recordings) and, "
        "with --align, the letter spoken there. Images: their class, also with ten labels a class, beside raw pixels. "
        "Text: labels of passages or of words in them, beside a bag of pieces.",
    )
    parser.add_argument("checkpoint", type=Path, help="fairseq checkpoint, pre-training of 1.0 or 2.0, or CTC")
    parser.add_argument(
        "data", type=Path, nargs="+", help="speech: TRAIN.tsv TEST.tsv; images: FOLDER; text: FOLDER TABLE.tsv ..."
    )
    parser.add_argument("--modality", choices=("audio", "image", "text"), help="for a model of several")
    parser.add_argument("--layers", type=int, nargs="+", help="which layers, 0 to the depth (default: all)")
    parser.add_argument("--untrained", action="store_true", help="probe the same network with random weights, too")
    parser.add_argument("--seed", type=int, default=1, help="of the random weights (default 1)")
    parser.add_argument("--json", type=Path, help="write the scores as JSON")
    speech = parser.add_argument_group("speech")
    speech.add_argument(
        "--align",
        type=Path,
        metavar="CTC_CHECKPOINT",
        help="probe letters: this CTC model finds the frame of each letter of the .ltr files beside both manifests; "
        "best one that does not come from the probed model",
    )
    add_model_options(parser)
    images, text = parser.add_argument_group("images"), parser.add_argument_group("text")
    images.add_argument("--pixel-size", type=int, help="side of the images that raw pixels are taken of (default 16)")
    text.add_argument("--max-tokens", type=int, help="of a passage (default: as many as have positions)")
    parser.set_defaults(run=run, max_seconds=None, max_bad=None)


def run(args: argparse.Namespace) -> int:
    """Find out what the checkpoint was trained on, and probe that."""
    from d2v_plugin.eval.modality import modality_of

    modality = args.modality.upper() if args.modality else modality_of(args.checkpoint)
    _check_options(args, modality)
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return _hand_over(args, modality)


def _check_options(args: argparse.Namespace, modality: str) -> None:
    """Raises ``UserError`` for an option of another modality, which would be passed over."""
    for other, names in OWN.items():
        for name in names:
            if other != modality and getattr(args, name) is not None:
                option = "dict" if name == "dictionary" else name.replace("_", "-")
                raise UserError(
                    f"--{option} is for {other.lower()}, and {args.checkpoint} is a model of {modality.lower()}; "
                    "leave it out"
                )


# each has ``run(args)``; imported when its modality is probed
MODULES = {"AUDIO": "_probe_speech", "IMAGE": "_probe_images", "TEXT": "_probe_text"}


def _hand_over(args: argparse.Namespace, modality: str) -> int:
    """Name the data as the modality's own module does, and run it."""
    given = args.data
    fits = {"AUDIO": len(given) == 2, "IMAGE": len(given) == 1, "TEXT": len(given) > 1 and given[0].is_dir()}
    if not fits[modality]:
        got = " ".join(map(str, given))
        raise UserError(f"a model of {modality.lower()} is probed with {DATA[modality]}; got {got}")
    if modality == "AUDIO":
        args.train, args.test = given
    else:
        args.data, *args.tables = given
    return importlib.import_module(f"d2v_plugin.cli.{MODULES[modality]}").run(args)
