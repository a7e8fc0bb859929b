"""``d2v probe`` for speech: MFCCs and letters in single frames."""

import argparse
import dataclasses
import functools
import json
import time

from d2v_plugin.cli._model_options import check_model_options, open_model, print_model
from d2v_plugin.errors import UserError


def _align(args: argparse.Namespace) -> list[dict | None]:
    """Where the letters of both manifests are; None twice without --align."""
    if args.align is None:
        return [None, None]
    from d2v_plugin.eval.align import iterate_alignments
    from d2v_plugin.eval.load import CTC
    from d2v_plugin.eval.progress import progress
    from d2v_plugin.eval.utterances import read_references, utterances_for

    aligner = open_model(args, args.test, args.align, want=CTC)
    sides = []
    for manifest in (args.train, args.test):
        utterances = utterances_for(aligner, manifest, args.max_bad)
        references = read_references(utterances.manifest, None)
        if references is None:
            raise UserError(f"--align needs {manifest.with_suffix('.ltr')}, which is missing; write it or leave it out")
        found = iterate_alignments(aligner, utterances, references, args.max_seconds)
        found = dict(progress(found, len(utterances), f"aligned, {manifest.stem}"))
        sides.append({index: letters for index, letters in found.items() if letters is not None})
        if len(sides[-1]) < len(found):
            print(f"{manifest}: {len(found) - len(sides[-1])} recordings too short for their transcripts: no letters")
    return sides


def run(args: argparse.Namespace) -> int:
    """Align, collect, fit, print."""
    check_model_options(args)
    from d2v_plugin.eval.features import check_layers
    from d2v_plugin.eval.probe import collect, format_table, letter_chance, score_layers
    from d2v_plugin.eval.progress import progress
    from d2v_plugin.eval.utterances import utterances_for

    start = time.monotonic()
    seeds = {"trained": None} | ({"untrained": args.seed} if args.untrained else {})
    scores, aligned = {}, None
    for name, seed in seeds.items():
        loaded = open_model(args, args.test, untrained_seed=seed)
        layers = check_layers(args.layers, loaded.depth)
        if seed is None:
            print_model(loaded, args.max_seconds)
            aligned = _align(args)
        sides = []
        for manifest, letters in zip((args.train, args.test), aligned, strict=True):
            utterances = utterances_for(loaded, manifest, args.max_bad)
            watch = functools.partial(progress, total=len(utterances), what=f"{name}, {manifest.stem}")
            sides.append(collect(loaded, utterances, layers, args.max_seconds, letters, watch))
            for line in utterances.losses() if seed is None else ():
                print(line)
        train, test = sides
        scores[name] = score_layers(train, test, args.align is not None)
    print(
        f"fitted on {train.sound.recordings} recordings ({len(train.sound.groups)} frames), "
        f"scored on {test.sound.recordings} ({len(test.sound.groups)} frames)"
    )
    print(format_table(scores["trained"], scores.get("untrained")))
    chance = None
    if args.align is not None:
        chance = letter_chance(train.letters, test.letters)
        counts = len(train.letters.groups), len(test.letters.groups)
        print("letters: fitted on {}, scored on {}; by chance {:.1f} % are right".format(*counts, 100 * chance))
    print(f"{time.monotonic() - start:.1f} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: [dataclasses.asdict(score) for score in found] for name, found in scores.items()}
        args.json.write_text(json.dumps({**rows, "chance": chance}, indent=1) + "\n", encoding="utf-8")
    return 0
