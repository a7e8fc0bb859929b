"""Pre-trains data2vec 2.0 on English prose and asks what its frozen features know of words and sentences."""

import json
from pathlib import Path

from commands import ROOT, Command, shown, training
from stages import Stages
from tables import seconds_table, table

HELP = "English prose: pre-train (data2vec 2.0), probe words and sentences, draw"
UPDATES = 2000
VOCABULARY = 4000  # sentencepiece pieces
CONFIG = ROOT / "examples" / "text" / "demo_prose.yaml"
PROBES = {"word_class": "part of speech of words it was not fitted on", "speech": "spoken or told"}


def add_arguments(parser):
    parser.add_argument("--data", help="file or folder of your own English text instead of Jane Austen's novels")
    parser.add_argument("--updates", type=int, help=f"of pre-training (default {UPDATES})")


def run(args, out=None):
    """Results go to ``out``: by default ``demo/text``, ``demo/own-text`` with ``--data``."""
    out = out or ROOT / "demo" / ("own-text" if args.data else "text")
    stages = Stages(out)
    prose, data = out / "prose", out / "data"
    words = ["python", "examples/text/prepare_prose.py", "--dest", prose]
    words += ["--data", Path(args.data).resolve()] if args.data else []
    stages.prepare("Prose, and what it will be probed for", Command("prepare", words), "data", "pretrain", "pictures")
    stages.step("Raw text to tokens", building(prose, data))
    command = training("pretrain", out, data, CONFIG, args.updates or UPDATES, threads=2)
    stages.step("Pre-training: data2vec 2.0, no labels", command)
    checkpoint = out / "pretrain" / "checkpoint_last.pt"
    title = "What it learned: frozen features against the untrained network and a bag of pieces"
    stages.step(title, probing(checkpoint, prose, data, out / "probe.json"))
    stages.results["probe"] = json.loads((out / "probe.json").read_text())
    for command in drawing(out, data, checkpoint):
        stages.step(f"Picture: {command.name}", command)
    stages.finish(write_table)


def building(prose, data):
    """Trains the sentencepiece model and binarises both parts; it refuses a folder that is there."""
    words = ["d2v", "text", "build", prose / "train", "--valid", prose / "valid", "--dest", data]
    return Command("build", [*words, "--vocab-size", str(VOCABULARY)], writes=data)


def probing(checkpoint, prose, data, out):
    tables = [prose / "probes" / f"{name}.tsv" for name in PROBES]
    words = ["d2v", "text", "probe", checkpoint, *tables, "--data", data, "--untrained", "--json", out]
    # many small products: a second thread only waits
    return Command("probe", words, threads=1)


def drawing(out, data, checkpoint):
    """Curves of the training, and a held-out passage under three masks."""
    log = shown(out / "pretrain" / "train.log")
    pictures = out / "pictures"
    return [
        Command("curves", ["d2v", "plot", f"pretrain={log}", "--out", pictures]),
        Command("masks", ["d2v", "plot", "--text", data, "--mask-from", checkpoint, "--out", pictures]),
    ]


def write_table(results):
    """``results`` as Markdown."""
    parts = [_probe(*pair) for pair in zip(results["probe"]["trained"], results["probe"]["untrained"], strict=True)]
    return "\n".join([*parts, seconds_table(results["seconds"])])


def _probe(trained, untrained):
    what = PROBES.get(trained["name"], trained["name"])
    other = {score["features"]: score for score in untrained["scores"]}
    rows = [("chance", f"{100 * trained['chance']:.1f} %", "")]
    for score in trained["scores"]:
        name = "bag of pieces" if score["features"] == "pieces" else score["features"]
        rows.append((name, _percent(score), _percent(other[score["features"]]) if score["features"] in other else ""))
    counts = f"{what}: {trained['classes']} labels, {trained['scored']} passages"
    return table((counts, "pre-trained", "untrained"), rows)


def _percent(score):
    return f"{100 * score['accuracy']:.1f} +- {100 * score['error']:.1f} %"
