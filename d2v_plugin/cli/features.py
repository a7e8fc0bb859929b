"""``d2v features``: layer outputs of a model for every recording of a manifest, as safetensors."""

import argparse
import math
from pathlib import Path

from d2v_plugin.cli._model_options import add_model_options, check_model_options, open_model, print_model
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
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Extract and write."""
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out must end in .safetensors, got {args.out}")
    if not 0 < args.shard_gigabytes < math.inf:
        raise UserError(f"--shard-gigabytes must be positive, got {args.shard_gigabytes:g}")
    check_model_options(args)
    import torch

    from d2v_plugin.eval.features import FeatureWriter, check_layers, feature_metadata, iterate_features
    from d2v_plugin.eval.progress import progress
    from d2v_plugin.eval.utterances import utterances_for

    loaded = open_model(args, args.manifest)
    layers = check_layers([loaded.depth] if args.layers is None else args.layers, loaded.depth)
    utterances = utterances_for(loaded, args.manifest, args.max_bad)
    print_model(loaded, args.max_seconds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    metadata = feature_metadata(loaded, args.checkpoint, args.manifest, layers)
    dtype, frames, count = getattr(torch, args.dtype), 0, 0
    found = progress(iterate_features(loaded, utterances, layers, args.max_seconds), len(utterances), "extracted")
    with FeatureWriter(args.out, metadata, int(args.shard_gigabytes * 2**30)) as writer:
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
    for line in utterances.losses():
        print(line)
    return 0
