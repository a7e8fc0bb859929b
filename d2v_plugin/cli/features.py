"""``d2v features``: layer outputs of a model for every recording of a manifest, as safetensors."""

import argparse
from pathlib import Path

from d2v_plugin.errors import UserError

DTYPES = ("float32", "float16")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register ``d2v features``."""
    parser = subparsers.add_parser(
        "features",
        help="write layer outputs as safetensors",
        description="Write tensors <id>/layer_<n> of shape (frames, channels). Layer 0 is the input of the first "
        "transformer block, layer n the output of block n. Takes pre-training and CTC checkpoints.",
    )
    parser.add_argument("checkpoint", type=Path, help="fairseq checkpoint")
    parser.add_argument("manifest", type=Path, help="fairseq manifest")
    parser.add_argument("--layers", type=int, nargs="+", help="which layers, 0 to the depth (default: the last)")
    parser.add_argument("--out", type=Path, required=True, help="file to write, ending in .safetensors")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the file (default float32)")
    parser.add_argument("--shard-gigabytes", type=float, default=4.0, help="start another file after this (default 4)")
    parser.add_argument("--dict", type=Path, dest="dictionary", help="dict.ltr.txt of training, if it cannot be found")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda")
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=60.0,
        help="audio a batch, padding counted (default 60); 0: one recording at a time",
    )
    parser.add_argument("--max-bad", type=int, default=10, help="unusable recordings that are skipped; -1: any number")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Extract and write."""
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, got {args.out}")
    if args.shard_gigabytes <= 0 or args.max_seconds < 0:
        raise UserError("--shard-gigabytes must be positive and --max-seconds must not be negative")
    import torch

    from d2v_plugin.eval.features import FeatureWriter, check_layers, feature_metadata, iterate_features
    from d2v_plugin.eval.load import load_model, pick_device
    from d2v_plugin.eval.progress import progress
    from d2v_plugin.eval.utterances import utterances_for

    loaded = load_model(
        args.checkpoint, device=pick_device(args.device), dictionary=args.dictionary, manifest=args.manifest
    )
    layers = check_layers([loaded.depth] if args.layers is None else args.layers, loaded.depth)
    utterances = utterances_for(loaded, args.manifest, args.max_bad)
    print(loaded.describe())
    if loaded.padding_changes_results and args.max_seconds:
        print(
            "note: this extractor normalises over time, so padding moves its numbers a little; "
            "--max-seconds 0 takes one recording at a time"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    metadata = feature_metadata(loaded, args.checkpoint, args.manifest, layers)
    writer = FeatureWriter(args.out, metadata, int(args.shard_gigabytes * 2**30))
    dtype, frames, count = getattr(torch, args.dtype), 0, 0
    found = progress(iterate_features(loaded, utterances, layers, args.max_seconds), len(utterances), "extracted")
    for index, outputs in found:
        writer.add(
            utterances.ids[index],
            utterances.manifest.name(index),
            {layer: output.to(dtype) for layer, output in outputs.items()},
        )
        frames += next(iter(outputs.values())).size(0)
        count += 1
    for file in writer.close():
        print(file)
    print(f"{count} recordings, {frames} frames, layers {' '.join(map(str, layers))}, {args.dtype}")
    if utterances.bad.summary():
        print(utterances.bad.summary())
    return 0
