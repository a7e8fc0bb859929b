"""``d2v``: finds the sub-commands, parses, runs one and turns user errors into one line.

A sub-command is a file of this folder with ``add_parser(subparsers)``, which sets ``run=fn`` as a default;
``fn(args)`` returns the exit code. Those files import torch and fairseq inside ``fn``, so that ``d2v --help``
answers at once.
"""

import argparse
import importlib
import pkgutil
import sys

import d2v_plugin
import d2v_plugin.cli
from d2v_plugin.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``d2v`` with every sub-command found, in alphabetical order."""
    parser = argparse.ArgumentParser(prog="d2v", description="data2vec for fairseq: data, scoring and features.")
    parser.add_argument("--version", action="version", version=f"d2v {d2v_plugin.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for info in sorted(pkgutil.iter_modules(d2v_plugin.cli.__path__), key=lambda info: info.name):
        if info.name == "main":
            continue
        module = importlib.import_module(f"d2v_plugin.cli.{info.name}")
        if hasattr(module, "add_parser"):
            module.add_parser(subparsers)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after ``d2v``; None takes them from the command line.
    Returns:
        The exit code: 0, the command's own, 2 for a user error, 130 when interrupted.
    """
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"d2v: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:  # a folder that cannot be written, a full disk
        fault = f"{error.filename or args.run.__module__}: {error.strerror or error}"
        remedy = "check this path, its rights and the free space, or choose another place"
        print(f"d2v: error: {fault}; {remedy}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("d2v: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
