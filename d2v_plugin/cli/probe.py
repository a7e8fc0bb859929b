"""``d2v probe``: what the frozen layers of a model know, beside the same network untrained."""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path

from d2v_plugin.cli._model_options import add_model_options, check_model_options, open_model, print_model


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register ``d2v probe``."""
    parser = subparsers.add_parser(
        "probe",
        help="linear probes of frozen features: MFCCs and letters",
        description="Ridge regression from each layer to MFCCs 2-13 (R2 on the frames of other recordings) and to "
        "letter counts (R2 beyond what the duration tells; needs .ltr files beside both manifests).",
    )
    parser.add_argument("checkpoint", type=Path, help="fairseq checkpoint, pre-training or CTC")
    parser.add_argument("train", type=Path, help="manifest to fit the probes on")
    parser.add_argument("test", type=Path, help="manifest to score them on")
    parser.add_argument("--layers", type=int, nargs="+", help="which layers, 0 to the depth (default: all)")
    parser.add_argument("--untrained", action="store_true", help="probe the same network with random weights, too")
    parser.add_argument("--seed", type=int, default=1, help="of the random weights (default 1)")
    parser.add_argument("--json", type=Path, help="write the scores as JSON")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect, fit, print."""
    check_model_options(args)
    from d2v_plugin.eval.features import check_layers
    from d2v_plugin.eval.probe import collect, format_table, score_layers
    from d2v_plugin.eval.progress import progress
    from d2v_plugin.eval.utterances import read_references, utterances_for

    start = time.monotonic()
    seeds = {"trained": None} | ({"untrained": args.seed} if args.untrained else {})
    scores = {}
    for name, seed in seeds.items():
        loaded = open_model(args, args.test, untrained_seed=seed)
        if seed is None:
            print_model(loaded, args.max_seconds)
        layers = check_layers(args.layers, loaded.depth)
        sides, references = [], []
        for manifest in (args.train, args.test):
            utterances = utterances_for(loaded, manifest, args.max_bad)
            references.append(read_references(utterances.manifest, None))
            what = f"{name}, {manifest.stem}"
            watch = functools.partial(progress, total=len(utterances), what=what)
            sides.append(collect(loaded, utterances, layers, args.max_seconds, watch))
            for line in utterances.losses() if seed is None else ():
                print(line)
        known = None not in references
        scores[name] = score_layers(sides[0], sides[1], (references[0], references[1]) if known else None)
        counted = (len(sides[0].durations), len(sides[0].groups), len(sides[1].durations), len(sides[1].groups))
    print("fitted on {} recordings ({} frames), scored on {} ({} frames)".format(*counted))
    print(format_table(scores["trained"], scores.get("untrained")))
    if not known:
        print("no letters: put .ltr files beside both manifests to score them")
    print(f"{time.monotonic() - start:.1f} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: [dataclasses.asdict(score) for score in found] for name, found in scores.items()}
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0
