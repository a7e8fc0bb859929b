"""``d2v probe`` for images: their class, by neighbours and a linear probe, beside an untrained network and pixels."""

import argparse
import dataclasses
import json
import logging
import os
import time

from d2v_plugin.errors import UserError

FITTED, CHOSEN, SCORED = "train", "valid", "test"


def run(args: argparse.Namespace) -> int:
    """Collect, fit, print."""
    from d2v_plugin.eval.image_features import ImageInput, depth, load_image_model
    from d2v_plugin.eval.image_probe import features_of, format_table, score_layers, score_pixels
    from d2v_plugin.eval.load import pick_device

    # fairseq opens the root logger, and Pillow tells about every block it reads
    logging.getLogger("PIL").setLevel(logging.WARNING)
    if args.pixel_size < 1:
        raise UserError(f"--pixel-size must be at least 1, got {args.pixel_size}")
    start = time.monotonic()
    device = pick_device(args.device)
    indices = find_parts(str(args.data))
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


def find_parts(data: str) -> dict:
    """``{"train", "valid", "test": ImageIndex}``; ``val`` is ``valid``, which stands in for ``test`` where that lacks.

    Raises:
        UserError: a part is missing.
    """
    from d2v_plugin.data.images.source import find_images, splits_in

    there = splits_in(data) if os.path.isdir(data) else []
    chosen = "val" if "val" in there and CHOSEN not in there else CHOSEN
    scored = SCORED if SCORED in there else chosen
    missing = [split for split in (FITTED, chosen) if split not in there]
    if missing:
        raise UserError(
            f"{data}: has no {' and no '.join(missing)} (found: {', '.join(there) or 'nothing'}); a probe takes "
            "a folder with train, valid or val, and test if there is one, each CLASS/FILE"
        )
    if scored == chosen:
        print(f"note: {data} has no {SCORED}, so {chosen} both chooses the penalty of the linear probe and is scored")
    parts = {split: find_images([data], split) for split in dict.fromkeys((FITTED, chosen, scored))}
    return {FITTED: parts[FITTED], CHOSEN: parts[chosen], SCORED: parts[scored]}
