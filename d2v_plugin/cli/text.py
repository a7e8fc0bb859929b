"""``d2v text``: binarise raw text for training with fairseq, check what was written, and probe what was learned."""

import json
import os
import time
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("text", help="binarise raw text for training, check it, probe a model")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_build(commands)

    encode = commands.add_parser("encode", help="binarise more text with the model and dictionary of a folder")
    _add_reading(encode)
    encode.add_argument("--data", required=True, help="folder that `d2v text build` wrote")
    encode.add_argument("--name", required=True, help="what to call it: NAME.bin and NAME.idx, e.g. test")
    encode.add_argument("--dest", help="folder to write to (default: --data)")
    encode.set_defaults(run=run_encode)

    check = commands.add_parser("check", help="read a folder of binarised text; exit code 1 if anything is wrong")
    check.add_argument("data", metavar="DIR", help="folder with dict.txt, train.bin and train.idx")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=run_check)
    _add_probe(commands)


def _add_build(commands) -> None:
    build = commands.add_parser(
        "build",
        help="write train.bin, valid.bin and dict.txt for raw text",
        description="Trains a sentencepiece model on the text (or takes --model), encodes the text and writes it as "
        "fairseq's memory-mapped token files. A line is a sentence or a paragraph, a blank line ends a document.",
    )
    _add_reading(build)
    build.add_argument("--dest", required=True, help="folder to make: data, dictionary and sentencepiece model")
    build.add_argument("--valid", nargs="+", default=[], metavar="TEXT", help="files or folders for valid.bin")
    build.add_argument(
        "--valid-share", type=float, help="portion of the documents for valid.bin (default 0.01; 0 with --valid)"
    )
    build.add_argument("--test-share", type=float, default=0.0, help="portion for test.bin (default none)")
    build.add_argument("--seed", type=int, default=0, help="of the division and of the lines the model is trained on")
    model = build.add_argument_group("sentencepiece model")
    model.add_argument("--vocab-size", type=int, default=32000, help="pieces and fairseq's specials (default 32000)")
    model.add_argument("--model-type", choices=("unigram", "bpe", "char"), default="unigram")
    model.add_argument("--lowercase", action="store_true", help="the model folds case, here and wherever it is used")
    model.add_argument(
        "--character-coverage", type=float, default=0.9999, help="characters that get a piece (default 0.9999)"
    )
    model.add_argument(
        "--train-lines", type=int, default=1_000_000, help="lines it is trained on, drawn evenly (default a million)"
    )
    model.add_argument("--model", metavar="FILE", help="take this model instead of training one")
    model.add_argument(
        "--dict", metavar="FILE", dest="dictionary", help="with --model: number pieces as this dict.txt, e.g. to go on"
    )
    build.set_defaults(run=run_build)


def _add_probe(commands) -> None:
    probe = commands.add_parser(
        "probe",
        help="what the frozen layers of a model know of labelled passages",
        description="Fits a linear probe on the mean vectors of each layer and scores it on held-out passages, beside "
        "a bag of sentencepiece pieces. examples/text/prepare_prose.py writes tables of passages.",
    )
    probe.add_argument("checkpoint", type=Path, help="fairseq checkpoint of data2vec_multi (text) or data2vec_text")
    probe.add_argument("tables", type=Path, nargs="+", metavar="TSV", help="split, label, document, start, end, text")
    probe.add_argument("--data", type=Path, required=True, help="folder of binarised text it was trained on")
    probe.add_argument("--layers", type=int, nargs="+", help="which layers, 0 to the depth (default: all)")
    probe.add_argument("--untrained", action="store_true", help="probe the same network with random weights, too")
    probe.add_argument("--seed", type=int, default=1, help="of the random weights (default 1)")
    probe.add_argument("--max-tokens", type=int, help="of a passage; the rest is cut off (default: what has positions)")
    probe.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:N")
    probe.add_argument("--json", type=Path, help="write the scores as JSON")
    probe.set_defaults(run=run_probe)


def _add_reading(parser) -> None:
    """What ``build`` and ``encode`` share: the text and how it is read."""
    parser.add_argument("inputs", nargs="+", metavar="TEXT", help="files, plain or gzip, or folders of them")
    parser.add_argument("--ext", nargs="+", help="suffixes to look for in folders (default: txt text gz)")
    parser.add_argument(
        "--document-lines", type=int, help="end a document after this many lines, for text without blank lines"
    )
    parser.add_argument("--workers", type=int, help="processes that encode (default: by size, at most 8)")
    parser.add_argument(
        "--max-bad-lines", type=int, default=1000, help="lines that are no UTF-8 text and are skipped; -1: any number"
    )


def run_build(args) -> int:
    from d2v_plugin.data.text.build import BuildOptions, build
    from d2v_plugin.errors import UserError

    _check_reading(args)
    if args.valid and args.valid_share:
        raise UserError("--valid and --valid-share are two ways to get valid.bin; leave one of them out")
    share = 0.01 if args.valid_share is None else args.valid_share
    if not (share >= 0 and args.test_share >= 0 and share + args.test_share < 1):
        raise UserError("--valid-share and --test-share are portions: 0.01 is 1 %, and both together below 1")
    for option, value, least in (("vocab-size", args.vocab_size, 5), ("train-lines", args.train_lines, 1)):
        if value < least:
            raise UserError(f"--{option} must be at least {least}, got {value}")
    if not 0 < args.character_coverage <= 1:
        raise UserError(f"--character-coverage must be above 0 and at most 1, got {args.character_coverage:g}")
    if args.dictionary and not args.model:
        raise UserError("--dict numbers the pieces of a model that is there already; name that model with --model, too")
    if args.lowercase and args.model:
        raise UserError("--lowercase is a property of the model when it is trained; leave it out with --model")
    build(
        BuildOptions(
            inputs=args.inputs,
            dest=args.dest,
            valid=args.valid,
            extensions=args.ext,
            valid_share=share,
            test_share=args.test_share,
            document_lines=args.document_lines,
            seed=args.seed,
            vocab_size=args.vocab_size,
            model_type=args.model_type,
            lowercase=args.lowercase,
            character_coverage=args.character_coverage,
            train_lines=args.train_lines,
            model=args.model,
            dictionary=args.dictionary,
            workers=args.workers,
            max_bad_lines=args.max_bad_lines,
        )
    )
    return 0


def run_encode(args) -> int:
    from d2v_plugin.data.text.build import encode_text
    from d2v_plugin.errors import UserError

    _check_reading(args)
    if not args.name or os.sep in args.name:
        raise UserError(f"--name is the name of a split, e.g. test, got {args.name!r}; the folder goes to --dest")
    encode_text(
        args.inputs,
        args.data,
        args.name,
        dest=args.dest,
        extensions=args.ext,
        document_lines=args.document_lines,
        workers=args.workers,
        max_bad_lines=args.max_bad_lines,
    )
    return 0


def _check_reading(args) -> None:
    from d2v_plugin.errors import UserError

    for option in ("document_lines", "workers"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, got {value}")
    if args.max_bad_lines < -1:
        raise UserError(f"--max-bad-lines must be -1 (any number), 0 or more, got {args.max_bad_lines}")


def run_probe(args) -> int:
    import dataclasses

    from d2v_plugin.errors import UserError
    from d2v_plugin.eval.features import check_layers
    from d2v_plugin.eval.load import pick_device
    from d2v_plugin.eval.text_features import load_text_model
    from d2v_plugin.eval.text_probe import format_table, probe_network, read_examples

    if args.max_tokens is not None and args.max_tokens < 3:
        raise UserError(f"--max-tokens must be at least 3, got {args.max_tokens}; <s> and </s> are two of them")
    began, device = time.monotonic(), pick_device(args.device)
    tables = {table.stem: read_examples(table) for table in args.tables}
    found, probes = {}, []
    for name, seed in {"trained": None, **({"untrained": args.seed} if args.untrained else {})}.items():
        loaded = load_text_model(args.checkpoint, args.data, device=device, untrained_seed=seed)
        if seed is None:
            print(loaded.describe())
            probes = _probes(tables, loaded, args.max_tokens)
        layers = check_layers(args.layers, loaded.depth)
        found[name] = [probe_network(probe, loaded, layers, pieces=seed is None) for probe in probes]
    print(format_table(found["trained"], found.get("untrained")))
    for probe in probes:
        if probe.left_out:
            print(f"{probe.name}: {probe.left_out} passages are left out, their words lie behind the longest passage")
    print(f"{time.monotonic() - began:.1f} s")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {name: [dataclasses.asdict(result) for result in results] for name, results in found.items()}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _probes(tables: dict, loaded, max_tokens: int | None) -> list:
    """A probe of each table; one that is too small is told and left out, unless it is the only one."""
    from d2v_plugin.errors import UserError
    from d2v_plugin.eval.text_probe import Probe

    probes, fault = [], None
    for name, examples in tables.items():
        try:
            probes.append(Probe(name, examples, loaded, max_tokens))
        except UserError as error:
            fault = error
            print(f"left out: {error}")
    if not probes:
        raise fault
    return probes


def run_check(args) -> int:
    from d2v_plugin.data.text.check import check_folder

    report = check_folder(Path(args.data))
    if args.json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
        return int(bool(report["problems"]))
    print(f"{args.data}: {report['symbols']} symbols")
    for split, found in report["splits"].items():
        sequences = f"{found['sequences']} sequences (longest {found['longest']})"
        tokens = f"{found['tokens']} tokens, {100 * found['unknown_share']:.2f} % unknown"
        print(f"  {split:<7} {found['documents']} documents, {sequences}, {tokens}")
    for problem in report["problems"]:
        print(f"  {problem}")
    return int(bool(report["problems"]))
