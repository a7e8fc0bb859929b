"""Runs one demo: ``python examples/demo/run.py speech``. ``make demo MODALITY=speech`` does the same.

Everything goes through commands that are printed before they run, so that each can be copied. Results, pictures and
logs are left in ``demo/MODALITY``; a demo that was stopped goes on where it was.
"""

import argparse
import importlib
import signal
import sys

from commands import ROOT, CommandFailed

# demo -> folder of its driver below examples, and the driver
DRIVERS = {
    "speech": ("speech/demo", "speech_demo"),
    "speech2": ("speech/demo", "speech2_demo"),
    "vision": ("vision/demo", "vision_demo"),
    "text": ("text/demo", "text_demo"),
}


def load_driver(name):
    """The module that runs a demo; the modules beside it can be imported, too.

    It has ``HELP``, ``add_arguments(parser)`` and ``run(args, out)``, which takes ``args.out`` or None for ``out``.
    """
    folder, module = DRIVERS[name]
    sys.path.append(str(ROOT / "examples" / folder))
    return importlib.import_module(module)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modalities = parser.add_subparsers(dest="modality", metavar="MODALITY", required=True)
    drivers = {name: load_driver(name) for name in DRIVERS}
    for name, driver in drivers.items():
        command = modalities.add_parser(name, help=driver.HELP, description=driver.__doc__)
        command.add_argument("--out", help="folder for all it writes (default: below demo)")
        driver.add_arguments(command)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill stops the trainings, too
    try:
        drivers[args.modality].run(args, (ROOT / args.out).resolve() if args.out else None)
    except CommandFailed as failure:
        print(f"d2v demo: error: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
