"""Runs one demo, ``python examples/demo/run.py speech``, or with ``all`` those that fine-tune, one after the other, and
prints one table over them. ``make demo MODALITY=speech`` and ``make demo`` do the same.

Everything goes through commands that are printed before they run, so that each can be copied. Results, pictures and
logs are left in ``demo/MODALITY``; a demo that was stopped goes on where it was.
"""

import argparse
import importlib
import json
import signal
import sys

from commands import ROOT, CommandFailed
from tables import table

# demo -> folder of its driver below examples, and the driver
DRIVERS = {
    "speech": ("speech/demo", "speech_demo"),
    "speech2": ("speech/demo", "speech2_demo"),
    "vision": ("vision/demo", "vision_demo"),
    "text": ("text/demo", "text_demo"),
}
ALL = "all"
FINE_TUNED = ("vision", "text", "speech")  # drivers with ``compared(results)``, which gives rows of the table
HEADER = ("data", "labels", "measure", "from the pre-trained model", "from scratch")


def load_driver(name):
    """The module that runs a demo; the modules beside it can be imported, too.

    It has ``HELP``, ``add_arguments(parser)`` and ``run(args, out)``, which takes ``args.out`` or None for ``out`` and
    returns the results.
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
    command = modalities.add_parser(ALL, help=f"{', '.join(FINE_TUNED)}: one table of what pre-training is worth")
    command.add_argument("--out", help="folder for all it writes (default: demo)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill stops the trainings, too
    try:
        out = (ROOT / args.out).resolve() if args.out else None
        if args.modality == ALL:
            run_all({name: drivers[name] for name in FINE_TUNED}, parser, out or ROOT / "demo")
        else:
            drivers[args.modality].run(args, out)
    except CommandFailed as failure:
        print(f"d2v demo: error: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


def run_all(drivers, parser, out):
    """Each demo into its folder below ``out``, and ``out/table.md`` over all of them.

    Demos that have ended are taken as they are until the table is there; after that all start over.
    """
    summary = out / "table.md"
    again = summary.exists()
    summary.unlink(missing_ok=True)
    rows = []
    for name, driver in drivers.items():
        print(f"\n==== {name}", flush=True)
        results = out / name / "results.json"
        if results.exists() and not again:
            print(f"done before: {results}", flush=True)
            rows += driver.compared(json.loads(results.read_text()))
        else:
            rows += driver.compared(driver.run(parser.parse_args([name]), out / name))
    text = table(HEADER, rows)
    summary.write_text(text)
    print(f"\n{text}\nThis table is in {summary}")


if __name__ == "__main__":
    sys.exit(main())
