"""``d2v text``: binarise raw text for training with fairseq, and check what was written."""

import json
import os
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("text", help="binarise raw text for training, and check it")
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
