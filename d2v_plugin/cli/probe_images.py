"""``d2v probe-images``: what the frozen layers of an image model know, beside the same network untrained and pixels."""

import argparse
import dataclasses
import json
import logging
import time
from pathlib import Path

from d2v_plugin.errors import UserError

SPLITS = ("train", "valid", "test")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register ``d2v probe-images``."""
    parser = subparsers.add_parser(
        "probe-images",
        help="nearest neighbours and linear probes of frozen image features",
        description="Classifies the images of DATA/test by the mean over patches of each layer: by their nearest "
        "neighbours in DATA/train, by logistic regression fitted there (its penalty chosen on DATA/valid), and by "
        "nearest neighbours with ten labels a class; and by raw pixels, for comparison.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint of data2vec_multi or data2vec_vision")
    parser.add_argument("data", type=Path, help="folder with train, valid and test, each CLASS/FILE or tar shards")
    parser.add_argument(
        "--pixel-size", type=int, default=16, help="side of the images that raw pixels are taken of (default 16)"
    )
    parser.add_argument("--layers", type=int, nargs="+", help="which layers, 0 to the depth (default: all)")
    parser.add_argument("--untrained", action="store_true", help="probe the same network with random weights, too")
    parser.add_argument("--seed", type=int, default=1, help="of the random weights (default 1)")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:N")
    parser.add_argument("--json", type=Path, help="write the scores as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect, fit, print."""
    from d2v_plugin.data.images.source import find_images
    from d2v_plugin.eval.image_features import ImageInput, depth, load_image_model
    from d2v_plugin.eval.image_probe import features_of, format_table, score_layers, score_pixels
    from d2v_plugin.eval.load import pick_device

    # fairseq opens the root logger, and Pillow tells about every block it reads
    logging.getLogger("PIL").setLevel(logging.WARNING)
    if args.pixel_size < 1:
        raise UserError(f"--pixel-size must be at least 1, got {args.pixel_size}")
    start = time.monotonic()
    device = pick_device(args.device)
    indices = {split: find_images([str(args.data)], split) for split in SPLITS}
    scores, seeds = {}, {"trained": None} | ({"untrained": args.seed} if args.untrained else {})
    for name, seed in seeds.items():
        model, cfg = load_image_model(args.checkpoint, untrained_seed=seed, device=device)
        image_input = ImageInput.of(cfg.task)
        layers = range(depth(model) + 1) if args.layers is None else args.layers
        if any(not 0 <= layer <= depth(model) for layer in layers):
            raise UserError(f"--layers must be 0 to {depth(model)}, got {' '.join(map(str, layers))}")
        scores[name] = score_layers(features_of(model, indices, image_input, layers))
    raw = score_pixels(indices, dataclasses.replace(image_input, input_size=args.pixel_size))
    counts = ", ".join(f"{len(index)} in {split}" for split, index in indices.items())
    print(f"images: {counts}")
    print(format_table(scores["trained"], scores.get("untrained"), raw))
    print(f"{time.monotonic() - start:.1f} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: [dataclasses.asdict(score) for score in found] for name, found in scores.items()}
        written = {**rows, "pixels": dataclasses.asdict(raw), "images": {s: len(i) for s, i in indices.items()}}
        args.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0
