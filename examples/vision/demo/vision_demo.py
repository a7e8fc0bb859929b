"""Pre-trains data2vec 2.0 on scikit-learn's handwritten digits, and asks what that is worth: frozen, and fine-tuned."""

import json
import statistics

from commands import ROOT, Command, held_out, shown, training
from stages import Stages
from tables import seconds_table, table

HELP = "handwritten digits: pre-train (data2vec 2.0), classify by frozen features, fine-tune, draw"
UPDATES = 4000
LABELS = {10: 300, 100: 600, None: 1000}  # labelled images, None for all -> updates of fine-tuning
DRAWS = 3  # of each number of labels but all
STARTS = {"pretrained": "from the pre-trained model", "scratch": "from scratch"}
CONFIG = ROOT / "examples" / "vision" / "demo_digits.yaml"
FINE_TUNING = ROOT / "examples" / "vision" / "finetune_digits.yaml"
PIXELS = 8  # along a side, as the digits come
PICTURES = 4  # that are drawn with their masks


def add_arguments(parser):
    parser.add_argument("--updates", type=int, help="of pre-training")


def run(args, out=None):
    """Results go to ``out``, by default ``demo/vision``."""
    out = out or ROOT / "demo" / "vision"
    stages = Stages(out)
    data = out / "data"
    words = ["python", "examples/vision/prepare_digits.py", "--dest", data, "--draws", str(DRAWS)]
    words += ["--labels", *(str(labels) for labels in LABELS if labels)]
    stale = ("pretrain", "finetune", "pictures", "probe.json")
    stages.prepare("Data: 1,797 handwritten digits", Command("prepare", words), *stale)
    command = training("pretrain", out, data, CONFIG, args.updates or UPDATES, threads=2)
    stages.step("Pre-training: data2vec 2.0, no labels", command)
    checkpoint = out / "pretrain" / "checkpoint_last.pt"
    stages.step(
        "What it learned: frozen features against the untrained network and raw pixels",
        probing(checkpoint, data, out / "probe.json"),
    )
    stages.results["probe"] = json.loads((out / "probe.json").read_text())
    for labels, updates in LABELS.items():
        runs = fine_tuning(out / "finetune", data, checkpoint, labels, updates)
        title = f"Fine-tuning on {labels or 'all'} labels: from that checkpoint and, with the same budget, from scratch"
        stages.step(title, *runs, at_once=2, name=f"fine-tune, {labels or 'all'} labels")
    stages.results["finetune"] = [fine_tuned(out / "finetune", labels) for labels in LABELS]
    for command in drawing(out, data, checkpoint):
        stages.step(f"Picture: {command.name}", command)
    return stages.finish(write_table)


def fine_tuning(out, data, checkpoint, labels, updates):
    """Trainings from ``checkpoint`` and from scratch on each draw of so many labels, scored on the test part."""
    commands = []
    for part in labelled(labels):
        for start in STARTS:
            more = [f"model.model_path={checkpoint}", f"dataset.train_subset={part}"]
            # rates that fall with depth spare what pre-training learned; here there is nothing to spare
            more += ["model.no_pretrained_weights=true", "model.layer_decay=1"] if start == "scratch" else []
            commands.append(training(f"{start}_{part}", out, data, FINE_TUNING, updates, 1, *more))
    return commands


def labelled(labels):
    """Folders of training images with so many labels; one with all."""
    return [f"train_{labels}_{draw}" for draw in range(1, DRAWS + 1)] if labels else ["train"]


def fine_tuned(out, labels):
    """``{"labels", start: accuracies in percent, one a draw}``."""
    scores = {
        start: [held_out(out / f"{start}_{part}" / "train.log", "accuracy") for part in labelled(labels)]
        for start in STARTS
    }
    return {"labels": labels, **scores}


def probing(checkpoint, data, out):
    words = ["d2v", "probe", checkpoint, data, "--untrained", "--pixel-size", str(PIXELS), "--json", out]
    # many small products: a second thread only waits
    return Command("probe", words, threads=1)


def drawing(out, data, checkpoint):
    """Curves of the training, and some digits of the validation part under their masks."""
    log = shown(out / "pretrain" / "train.log")
    pictures = out / "pictures"
    classes = sorted(path for path in (data / "valid").iterdir() if path.is_dir())
    files = [min(folder.iterdir()) for folder in classes[:: max(1, len(classes) // PICTURES)][:PICTURES]]
    runs = {"pre-trained": "pretrained", "scratch": "scratch"}
    logs = [f"{name}={shown(out / 'finetune' / f'{run}_train_100_1' / 'train.log')}" for name, run in runs.items()]
    return [
        Command("curves", ["d2v", "plot", f"pretrain={log}", "--out", pictures]),
        Command("scores", ["d2v", "plot", *logs, "--out", pictures / "100_labels"]),
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
    parts += [table(header, rows), _fine_tuned(results["finetune"]), seconds_table(results["seconds"])]
    return "\n".join(parts)


def compared(results):
    """Rows of the table over all demos: data, labels, measure, from the pre-trained model, from scratch."""
    return [
        ("images: handwritten digits", _labels(scores), "accuracy", *(_mean(scores[start]) for start in STARTS))
        for scores in results["finetune"]
    ]


def _fine_tuned(scores):
    rows = [(_labels(score), *(_mean(score[start]) for start in STARTS)) for score in scores]
    return table(("labels of fine-tuning", *(f"accuracy {what}" for what in STARTS.values())), rows)


def _labels(scores):
    return scores["labels"] or "all 1,278"


def _mean(values):
    """Mean and, where there are several, the standard deviation."""
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


def _scores(what, scores):
    linear = f"{100 * scores['linear']:.1f} +- {100 * scores['error']:.1f} %"
    return what, f"{100 * scores['knn']:.1f} %", linear, f"{100 * scores['few']:.1f} %"
