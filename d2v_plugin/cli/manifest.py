"""``d2v manifest``: write manifests and labels for a folder of recordings, and check one."""

import json
import math
from collections import Counter
from pathlib import Path

SHOWN = 10
# beside the labels of classes, as the task calls it by default
DESCRIPTORS = "label_descriptors.csv"
# two frames of the papers' feature extractor, the least that pre-training takes
TWO_FRAMES = 720


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("manifest", help="write a manifest for a folder of recordings, or check one")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    build = commands.add_parser("build", help="write train.tsv and valid.tsv for a folder of recordings")
    build.add_argument("folder", metavar="DIR", help="searched with everything below it")
    build.add_argument("--dest", required=True, help="folder for the manifests (and labels)")
    build.add_argument("--ext", nargs="+", help="suffixes to look for (default: what libsndfile reads)")
    build.add_argument("--valid-percent", type=float, default=0.01, help="portion for valid.tsv (default 0.01: 1 %%)")
    build.add_argument("--test-percent", type=float, default=0.0, help="portion for test.tsv (default none)")
    build.add_argument("--seed", type=int, default=0, help="of the division; it depends on nothing else but names")
    build.add_argument("--labels", metavar="FILE", help=".csv, .tsv or .jsonl with the fields path and text")
    build.add_argument("--sample-rate", type=int, default=16000, help="rate that sizes are given in (default 16000)")
    build.add_argument("--segments", type=float, metavar="SECONDS", help="list longer recordings in pieces")
    build.set_defaults(run=run_build)

    check = commands.add_parser("check", help="read what a manifest names; exit code 1 if anything is wrong")
    check.add_argument("manifest", metavar="TSV")
    check.add_argument("--sample-rate", type=int, default=16000, help="rate the model wants (default 16000)")
    check.add_argument(
        "--min-sample-size",
        type=int,
        default=TWO_FRAMES,
        help=f"as in the task: shorter entries are skipped (default {TWO_FRAMES}: two frames of the usual extractor)",
    )
    check.add_argument("--max-sample-size", type=int, help="as in the task: longer entries are cropped")
    check.add_argument("--labels", metavar="SUFFIX", help="check the label file beside it too: ltr, lbl")
    check.add_argument(
        "--decode", action="store_true", help="read all samples, not only headers: finds NaN and all zeros, too"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=run_check)

    audioset = commands.add_parser("audioset-labels", help="write the label file of a manifest of AudioSet's clips")
    audioset.add_argument("table", metavar="CSV", help="AudioSet's table of the split, balanced_train_segments.csv")
    audioset.add_argument("--manifest", required=True, metavar="TSV", help="recordings named by their YouTube id")
    audioset.add_argument("--descriptors", required=True, metavar="CSV", help="class_labels_indices.csv")
    audioset.add_argument(
        "--output", metavar="LBL", help="label file to write (default: the manifest's name with .lbl)"
    )
    audioset.set_defaults(run=run_audioset_labels)


def run_audioset_labels(args) -> int:
    from d2v_plugin.data.audio.audioset import read_clips, write_labels_for
    from d2v_plugin.data.audio.classes import read_descriptors

    classes = read_descriptors(args.descriptors)
    clips = read_clips(args.table, classes)
    output = Path(args.output) if args.output else Path(args.manifest).with_suffix(".lbl")
    count = write_labels_for(args.manifest, clips, output)
    print(f"{output}: {count} entries, {len(classes)} classes")
    return 0


def run_build(args) -> int:
    from d2v_plugin.data.audio.building import EXTENSIONS, divide, find_files, threaded, write_splits
    from d2v_plugin.data.audio.io import AudioError, probe
    from d2v_plugin.data.audio.manifest import Entry
    from d2v_plugin.errors import UserError

    if not (0 <= args.valid_percent and 0 <= args.test_percent and args.valid_percent + args.test_percent < 1):
        raise UserError("--valid-percent and --test-percent are portions: 0.01 is 1 %, and both together below 1")
    if args.segments is not None and not 0 < args.segments < math.inf:
        raise UserError(f"--segments is a length in seconds, above 0, got {args.segments:g}")
    _check_rate(args.sample_rate)
    folder = Path(args.folder).resolve()
    names = find_files(folder, args.ext or EXTENSIONS)
    texts = _texts(args.labels, folder) if args.labels else None

    def header(name):
        try:
            return probe(Entry(str(folder / name), 0))
        except AudioError as error:
            return error

    left_out, recordings = Counter(), []
    for name, info in zip(names, threaded(header, names, "read"), strict=True):
        if isinstance(info, AudioError):
            left_out[info.kind] += 1
            print(f"left out {info}")
            continue
        recordings += _recordings(name, info, args, texts, left_out)
    if not recordings:
        raise UserError(f"{folder}: none of its {len(names)} files can be used ({_listed(left_out)})")

    shares = {"valid": args.valid_percent, "test": args.test_percent}
    splits = divide(recordings, {split: part for split, part in shares.items() if part > 0}, args.seed)
    write_splits(args.dest, folder, splits)
    for split, chosen in splits.items():
        if not chosen:
            continue  # an empty manifest is not written
        hours = sum(recording.frames for recording in chosen) / args.sample_rate / 3600
        print(f"{Path(args.dest, split + '.tsv')}: {len(chosen)} entries, {hours:.2f} h")
    if texts is not None and (lost := len(texts.keys() - set(names))):
        print(f"{args.labels}: {lost} of {len(texts)} transcripts name no file of {folder}")
    if left_out:
        print(f"left out {sum(left_out.values())} files: {_listed(left_out)}")
    return 0


def _check_rate(sample_rate: int) -> None:
    from d2v_plugin.errors import UserError

    if sample_rate < 1:
        raise UserError(f"--sample-rate must be positive, got {sample_rate}; 16000 is usual")


def _texts(path: str, folder: Path) -> dict[str, str]:
    """Normalised transcripts by path relative to the folder."""
    from d2v_plugin.data.audio.transcripts import normalise, read_transcripts

    result = {}
    for name, text in read_transcripts(path).items():
        place = Path(name)
        relative = place.relative_to(folder) if place.is_absolute() and place.is_relative_to(folder) else place
        result[str(relative)] = normalise(text)
    return result


def _recordings(name: str, info, args, texts: dict[str, str] | None, left_out: Counter) -> list:
    """The manifest lines of one readable file; what keeps it out is counted."""
    from d2v_plugin.data.audio.building import Recording, segments

    frames = round(info.frames * args.sample_rate / info.sample_rate)
    longest = round(args.segments * args.sample_rate) if args.segments else frames
    if frames == 0:
        left_out["shorter than one frame"] += 1
    elif texts is None:
        return [Recording(piece, size, key=name) for piece, size in segments(name, frames, max(longest, 1))]
    elif not texts.get(name):
        left_out["no transcript"] += 1
    elif frames > longest:
        left_out[f"longer than {args.segments:g} s, which its transcript cannot be divided by"] += 1
    else:
        return [Recording(name, frames, key=texts[name], text=texts[name])]
    return []


def run_check(args) -> int:
    from d2v_plugin.data.audio.manifest import load_manifest
    from d2v_plugin.errors import UserError

    _check_rate(args.sample_rate)
    if args.min_sample_size < 0:
        raise UserError(f"--min-sample-size must not be negative, got {args.min_sample_size}; it counts samples")
    if args.max_sample_size is not None and args.max_sample_size < max(args.min_sample_size, 1):
        raise UserError(
            f"--max-sample-size {args.max_sample_size} is below --min-sample-size {max(args.min_sample_size, 1)}; "
            "raise the first or lower the second (both count samples)"
        )
    kept = load_manifest(args.manifest, args.min_sample_size)
    report = {
        "manifest": args.manifest,
        "entries": kept.total,
        "skipped_by_length": kept.skipped,
        "cropped": int((kept.sizes > args.max_sample_size).sum()) if args.max_sample_size else 0,
        **_check_audio(kept, args.sample_rate, args.decode),
    }
    report["labels"] = _check_labels(kept, args.labels) if args.labels else {}
    wrong = bool(report["unusable"] or report["labels"].get("problems"))
    if args.json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        _print_report(report, args)
    return int(wrong)


def _check_audio(manifest, sample_rate: int, decode: bool) -> dict:
    from d2v_plugin.data.audio.building import threaded
    from d2v_plugin.data.audio.io import AudioError, check_header, read_audio

    def look(index):
        entry = manifest.entry(index)
        try:
            info = check_header(entry, sample_rate)
            if decode:
                read_audio(entry, sample_rate)
            return info
        except AudioError as error:
            return error

    rates, channels, faults, lines = Counter(), Counter(), Counter(), []
    good = 0
    for index, info in enumerate(threaded(look, range(len(manifest)), "checked")):
        if isinstance(info, AudioError):
            faults[info.kind] += 1
            lines.append(f"{manifest.path}:{manifest.rows[index] + 2}: {info}")
            continue
        rates[info.sample_rate] += 1
        channels[info.channels] += 1
        good += int(manifest.sizes[index])
    return {
        "usable": len(manifest) - len(lines),
        "hours": round(good / sample_rate / 3600, 4),
        "sample_rates": dict(rates.most_common()),
        "channels": dict(channels.most_common()),
        "unusable": dict(faults.most_common()),
        "unusable_files": lines,
    }


def _check_labels(manifest, suffix: str) -> dict:
    """Line count, unknown symbols and empty lines of the label file beside the manifest; of classes their numbers."""
    from d2v_plugin.data.audio.labels import load_labels
    from d2v_plugin.errors import UserError

    path = Path(manifest.path).with_suffix("." + suffix)
    dictionary = path.with_name(f"dict.{suffix}.txt")
    if not dictionary.is_file() and path.with_name(DESCRIPTORS).is_file():
        return _check_classes(manifest, path)
    try:
        if not dictionary.is_file():
            raise UserError(f"{dictionary}: does not exist; write it with `d2v manifest build --labels`")
        rows = dictionary.read_text(encoding="utf-8").splitlines()
        symbols = {row.rsplit(" ", 1)[0]: index for index, row in enumerate(rows) if row.strip()}
        labels = load_labels(
            path,
            symbols,
            rows=manifest.rows,
            total=manifest.total,
            manifest_path=manifest.path,
            dictionary_path=str(dictionary),
        )
    except UserError as error:
        return {"problems": [str(error)]}
    empty = int((labels.lengths == 0).sum())
    return {"symbols": len(symbols), "tokens": len(labels.tokens), "empty_lines": empty, "problems": []}


def _check_classes(manifest, path: Path) -> dict:
    from d2v_plugin.data.audio.classes import load_classes, read_descriptors
    from d2v_plugin.errors import UserError

    descriptors = path.with_name(DESCRIPTORS)
    try:
        classes = len(read_descriptors(descriptors))
        labels = load_classes(
            path,
            classes,
            rows=manifest.rows,
            total=manifest.total,
            manifest_path=manifest.path,
            descriptors=str(descriptors),
        )
    except UserError as error:
        return {"problems": [str(error)]}
    return {
        "classes": classes,
        "occurring": len(set(labels.tokens.tolist())),
        "labels": len(labels.tokens),
        "problems": [],
    }


def _print_report(report: dict, args) -> None:
    print(f"{report['manifest']}: {report['entries']} entries")
    print(f"  usable      {report['usable']}, {report['hours']:.2f} h at {args.sample_rate} Hz")
    print(f"  rates       {_listed(report['sample_rates'], 'at {} Hz')}")
    if other := [rate for rate in report["sample_rates"] if rate != args.sample_rate]:
        print(f"              files at {', '.join(map(str, other))} Hz are converted each time they are read")
    print(f"  channels    {_listed(report['channels'], 'with {}')}")
    print(f"  by length   {_listed(report['skipped_by_length'])} skipped, {report['cropped']} cropped")
    print(f"  unusable    {_listed(report['unusable'])}")
    for line in report["unusable_files"][:SHOWN]:
        print(f"    {line}")
    if (more := len(report["unusable_files"]) - SHOWN) > 0:
        print(f"    and {more} more (--json lists all)")
    labels = report["labels"]
    if labels.get("problems"):
        print(f"  labels      {labels['problems'][0]}")
    elif "classes" in labels:
        print(f"  labels      {labels['labels']}, of {labels['occurring']} of {labels['classes']} classes")
    elif labels:
        found = f"{labels['tokens']} tokens of {labels['symbols']} symbols, {labels['empty_lines']} empty lines"
        print(f"  labels      {found}")


def _listed(counts: dict, form: str = "{}") -> str:
    return ", ".join(f"{count} {form.format(name)}" for name, count in counts.items()) or "none"
