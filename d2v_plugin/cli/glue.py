"""``d2v glue``: prepare GLUE's tasks, fine-tune a model on them over a sweep of learning rates, and print the table."""

import json
import os
from pathlib import Path


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser("glue", help="prepare GLUE, fine-tune over a sweep of rates, print the table")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_prepare(commands)
    _add_run(commands)
    table = commands.add_parser("table", help="the best of each task, and the average as the papers report it")
    table.add_argument("out", type=Path, metavar="DIR", help="folder of `d2v glue run`")
    table.add_argument("--mean", action="store_true", help="mean over seeds at the best rate, instead of the best run")
    table.add_argument(
        "--one-rate", action="store_true", help="one rate for all tasks, that of the best average, as in 1.0's paper"
    )
    table.add_argument("--json", action="store_true", help="print one JSON object")
    table.set_defaults(run=run_table)


def _add_tasks(parser) -> None:
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="of cola mnli mrpc qnli qqp rte sst_2 sts_b (default all)"
    )


def _add_prepare(commands) -> None:
    prepare = commands.add_parser(
        "prepare",
        help="write the official tab-separated files as sentence_prediction reads them",
        description="Encodes each task with the pieces and the dictionary of the pre-trained model: those of a folder "
        "that `d2v text build` wrote (--text), or GPT-2's (--dict, --gpt2-encoder, --gpt2-vocab).",
    )
    prepare.add_argument("source", type=Path, metavar="GLUE", help="folder with CoLA, MNLI ..., or one of these")
    prepare.add_argument("--dest", type=Path, required=True, help="folder to write to, one folder a task")
    _add_tasks(prepare)
    prepare.add_argument("--text", type=Path, help="folder of binarised text that the model was pre-trained on")
    prepare.add_argument("--dict", type=Path, dest="dictionary", help="dict.txt of pre-training, with GPT-2's pairs")
    prepare.add_argument("--gpt2-encoder", type=Path, help="GPT-2's encoder.json")
    prepare.add_argument("--gpt2-vocab", type=Path, help="GPT-2's vocab.bpe")
    prepare.add_argument(
        "--max-positions",
        type=int,
        default=512,
        help="longest sequence of the model; what is longer is cut (default 512)",
    )
    prepare.add_argument(
        "--max-bad-lines", type=int, default=100, help="broken lines of a task that are skipped; -1: any number"
    )
    prepare.set_defaults(run=run_prepare)


def _add_run(commands) -> None:
    run = commands.add_parser(
        "run",
        help="fine-tune on each task with each learning rate and seed; goes on where it was stopped",
        description="What ended is not run again, what was interrupted resumes. Each run has a folder below --out with "
        "its log, its best checkpoint and its scores.",
    )
    run.add_argument("model", type=Path, metavar="CHECKPOINT", help="checkpoint of pre-training with text")
    run.add_argument("--data", type=Path, required=True, help="folder that `d2v glue prepare` wrote")
    run.add_argument("--out", type=Path, required=True, help="folder for the runs")
    _add_tasks(run)
    run.add_argument(
        "--lrs",
        nargs="+",
        help="learning rates (default those of the model's paper: for 2.0 1e-5 2e-5 4e-5 6e-5, for 1.0 1e-5 to 4e-5)",
    )
    run.add_argument("--seeds", nargs="+", type=int, default=[1], help="seeds (default 1)")
    run.add_argument("--jobs", type=int, default=1, help="runs at a time; GPUs take turns (default 1)")
    run.add_argument(
        "--config-dir", type=Path, help="YAML files by task (default: examples/text/glue or, for 1.0, glue_v1)"
    )
    run.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings for every run, as on fairseq's command line"
    )
    run.set_defaults(run=run_run)


def _tasks(args) -> list:
    from d2v_plugin.data.text.glue import TASKS, task_named

    return [task_named(name) for name in dict.fromkeys(args.tasks)] if args.tasks else list(TASKS.values())


def run_prepare(args) -> int:
    from d2v_plugin.data.text.glue_files import find_folder
    from d2v_plugin.data.text.glue_prepare import prepare_tasks
    from d2v_plugin.errors import UserError

    if args.max_bad_lines < -1:
        raise UserError(f"--max-bad-lines must be -1 (any number), 0 or more, got {args.max_bad_lines}")
    if args.max_positions < 8:
        raise UserError(f"--max-positions must be at least 8, got {args.max_positions}; 512 is usual")
    encoder, tasks = _encoder(args), _tasks(args)
    for task in tasks:
        find_folder(args.source, task)  # all of them, before the first is encoded
    prepare_tasks(
        args.source,
        args.dest,
        tasks,
        encoder,
        max_positions=args.max_positions,
        max_bad_lines=args.max_bad_lines,
    )
    return 0


def _encoder(args):
    from d2v_plugin.data.text.labelled import TextEncoder
    from d2v_plugin.errors import UserError

    pairs = {"--dict": args.dictionary, "--gpt2-encoder": args.gpt2_encoder, "--gpt2-vocab": args.gpt2_vocab}
    missing = [option for option, value in pairs.items() if value is None]
    if args.text is not None and len(missing) == len(pairs):
        return TextEncoder.of_folder(args.text)
    if args.text is not None or missing:
        raise UserError(
            "give the pieces of the pre-trained model: --text FOLDER, or all of --dict, --gpt2-encoder and --gpt2-vocab"
        )
    return TextEncoder.of_gpt2(args.gpt2_encoder, args.gpt2_vocab, args.dictionary)


def run_run(args) -> int:
    from d2v_plugin.cli._glue_sweep import Sweep
    from d2v_plugin.errors import UserError

    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {args.jobs}")
    sweep = Sweep(
        model=args.model,
        data=args.data,
        out=args.out,
        tasks=_tasks(args),
        rates=args.lrs,
        seeds=args.seeds,
        config_dir=args.config_dir,
        settings=args.set,
    )
    failed = sweep.run(args.jobs)
    if failed < len(sweep.runs):
        print(_table(args.out, mean=len(args.seeds) > 1))
    return int(failed > 0)


def run_table(args) -> int:
    if args.json:
        from d2v_plugin.eval.glue_table import read_results, summary

        print(json.dumps(summary(read_results(args.out), mean=args.mean, one_rate=args.one_rate), indent=1))
    else:
        print(_table(args.out, args.mean, args.one_rate))
    return 0


def _table(out: os.PathLike, mean: bool, one_rate: bool = False) -> str:
    from d2v_plugin.eval.glue_table import format_table, read_results, summary

    return format_table(summary(read_results(out), mean=mean, one_rate=one_rate))
