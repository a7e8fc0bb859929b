"""Pre-trains data2vec 2.0 on scikit-learn's handwritten digits and asks what its frozen features know of them."""

import json

from commands import ROOT, Command, shown, training
from stages import Stages
from tables import seconds_table, table

HELP = "handwritten digits: pre-train (data2vec 2.0), classify by frozen features, draw"
UPDATES = 5000
CONFIG = ROOT / "examples" / "vision" / "demo_digits.yaml"
PIXELS = 8  # along a side, as the digits come
PICTURES = 4  # that are drawn with their masks


def add_arguments(parser):
    parser.add_argument("--updates", type=int, help="of pre-training")


def run(args, out=None):
    """Results go to ``out``, by default ``demo/vision``."""
    out = out or ROOT / "demo" / "vision"
    stages = Stages(out)
    data = out / "data"
    words = ["python", "examples/vision/prepare_digits.py", "--dest", data]
    stages.prepare("Data: 1,797 handwritten digits", Command("prepare", words), "pretrain", "pictures", "probe.json")
    command = training("pretrain", out, data, CONFIG, args.updates or UPDATES, threads=2)
    stages.step("Pre-training: data2vec 2.0, no labels", command)
    checkpoint = out / "pretrain" / "checkpoint_last.pt"
    stages.step(
        "What it learned: frozen features against the untrained network and raw pixels",
        probing(checkpoint, data, out / "probe.json"),
    )
    stages.results["probe"] = json.loads((out / "probe.json").read_text())
    for command in drawing(out, data, checkpoint):
        stages.step(f"Picture: {command.name}", command)
    stages.finish(write_table)


def probing(checkpoint, data, out):
    words = ["d2v", "probe-images", checkpoint, data, "--untrained", "--pixel-size", str(PIXELS), "--json", out]
    # many small products: a second thread only waits
    return Command("probe", words, threads=1)


def drawing(out, data, checkpoint):
    """Curves of the training, and some digits of the validation part under their masks."""
    log = shown(out / "pretrain" / "train.log")
    pictures = out / "pictures"
    classes = sorted(path for path in (data / "valid").iterdir() if path.is_dir())
    files = [min(folder.iterdir()) for folder in classes[:: max(1, len(classes) // PICTURES)][:PICTURES]]
    return [
        Command("curves", ["d2v", "plot", f"pretrain={log}", "--out", pictures]),
        Command("masks", ["d2v", "plot", "--image", *files, "--mask-from", checkpoint, "--out", pictures]),
    ]


def write_table(results):
    """``results`` as Markdown."""
    probe = results["probe"]
    parts = [table(("part", "images"), list(probe["images"].items()))]
    header = ("features", "nearest neighbours", "linear probe", "10 labels a class")
    rows = []
    for name, what in (("trained", "pre-trained"), ("untrained", "untrained")):
        rows += [_scores(f"{what}, layer {scores['layer']}", scores) for scores in probe[name]]
    rows.append(_scores("raw pixels", probe["pixels"]))
    return "\n".join([*parts, table(header, rows), seconds_table(results["seconds"])])


def _scores(what, scores):
    linear = f"{100 * scores['linear']:.1f} +- {100 * scores['error']:.1f} %"
    return what, f"{100 * scores['knn']:.1f} %", linear, f"{100 * scores['few']:.1f} %"
