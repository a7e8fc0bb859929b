"""Pre-trains data2vec 2.0 on English prose, and asks what that is worth: frozen, and fine-tuned."""

import json
from pathlib import Path

from commands import ROOT, Command, held_out, shown, training
from stages import Stages
from tables import seconds_table, table

HELP = "English prose: pre-train (data2vec 2.0), probe words and sentences, fine-tune, draw"
UPDATES = 2000
VOCABULARY = 4000  # sentencepiece pieces
CONFIG = ROOT / "examples" / "text" / "demo_prose.yaml"
FINE_TUNING = ROOT / "examples" / "text" / "finetune_demo.yaml"
LABELS = ("400", "all")
FINE_TUNING_UPDATES = 300
STARTS = {"pretrained": "from the pre-trained model", "scratch": "from scratch"}
PROBES = {"word_class": "part of speech of words it was not fitted on", "speech": "spoken or told"}
STALE = ("data", "pretrain", "labelled", "finetune", "pictures")


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
    stages.prepare("Prose, and what it will be probed for", Command("prepare", words), *STALE)
    stages.step("Raw text to tokens", building(prose, data))
    command = training("pretrain", out, data, CONFIG, args.updates or UPDATES, threads=2)
    stages.step("Pre-training: data2vec 2.0, no labels", command)
    checkpoint = out / "pretrain" / "checkpoint_last.pt"
    title = "What it learned: frozen features against the untrained network and a bag of pieces"
    stages.step(title, probing(checkpoint, prose, data, out / "probe.json"))
    stages.results["probe"] = json.loads((out / "probe.json").read_text())
    if not args.data:  # own text may hold too few words that can be labelled
        fine_tune(stages, out, prose, data, checkpoint)
    for command in drawing(out, data, checkpoint, fine_tuned="finetune" in stages.results):
        stages.step(f"Picture: {command.name}", command)
    return stages.finish(write_table)


def building(prose, data):
    """Trains the sentencepiece model and binarises both parts; it refuses a folder that is there."""
    words = ["d2v", "text", "build", prose / "train", "--valid", prose / "valid", "--dest", data]
    return Command("build", [*words, "--vocab-size", str(VOCABULARY)], writes=data)


def fine_tune(stages, out, prose, data, checkpoint):
    """Labels words of the prose, trains on them from ``checkpoint`` and from scratch, and keeps the scores."""
    labelled = out / "labelled"
    # it refuses a folder that is there
    command = Command("label", labelling(prose, data, labelled), writes=labelled)
    stages.step("Labels: the part of speech of a word in its passage", command)
    for labels in LABELS:
        title = f"Fine-tuning on {labels} labels: from that checkpoint and, with the same budget, from scratch"
        runs = fine_tuning(out / "finetune", labelled / labels, checkpoint)
        stages.step(title, *runs, name=f"fine-tune, {labels} labels")
    stages.results["finetune"] = [fine_tuned(out / "finetune", labels) for labels in LABELS]


def labelling(prose, data, dest):
    words = ["python", "examples/text/prepare_labelled.py", prose / "probes" / "word_class.tsv", "--data", data]
    return [*words, "--dest", dest, "--labels", *(labels for labels in LABELS if labels != "all")]


def fine_tuning(out, data, checkpoint):
    """Trainings from ``checkpoint`` and from scratch on the labels in ``data``, side by side."""
    start = f"model.model_path={checkpoint}"
    extra = {"pretrained": [], "scratch": ["model.no_pretrained_weights=true"]}
    return [
        training(f"{name}_{data.name}", out, data, FINE_TUNING, FINE_TUNING_UPDATES, 1, start, *more)
        for name, more in extra.items()
    ]


def fine_tuned(out, labels):
    """``{"labels", start: accuracy in percent}``."""
    scores = {start: held_out(out / f"{start}_{labels}" / "train.log", "accuracy") for start in STARTS}
    return {"labels": labels, **scores}


def probing(checkpoint, prose, data, out):
    tables = [prose / "probes" / f"{name}.tsv" for name in PROBES]
    words = ["d2v", "probe", checkpoint, data, *tables, "--untrained", "--json", out]
    # many small products: a second thread only waits
    return Command("probe", words, threads=1)


def drawing(out, data, checkpoint, fine_tuned):
    """Curves of the trainings, and a held-out passage under three masks."""
    log = shown(out / "pretrain" / "train.log")
    pictures = out / "pictures"
    runs = {"pre-trained": "pretrained_all", "scratch": "scratch_all"}
    logs = [f"{name}={shown(out / 'finetune' / run / 'train.log')}" for name, run in runs.items()]
    scores = [Command("scores", ["d2v", "plot", *logs, "--out", pictures / "all_labels"])] if fine_tuned else []
    return [
        Command("curves", ["d2v", "plot", f"pretrain={log}", "--out", pictures]),
        *scores,
        Command("masks", ["d2v", "plot", "--text", data, "--mask-from", checkpoint, "--out", pictures]),
    ]


def write_table(results):
    """``results`` as Markdown."""
    parts = [_probe(*pair) for pair in zip(results["probe"]["trained"], results["probe"]["untrained"], strict=True)]
    if "finetune" in results:
        header = ("labels: part of speech of words not among them", *(f"accuracy {what}" for what in STARTS.values()))
        parts.append(table(header, [(scores["labels"], *_accuracies(scores)) for scores in results["finetune"]]))
    return "\n".join([*parts, seconds_table(results["seconds"])])


def compared(results):
    """Rows of the table over all demos: data, labels, measure, from the pre-trained model, from scratch."""
    name = "text: part of speech in Jane Austen's novels"
    return [(name, scores["labels"], "accuracy", *_accuracies(scores)) for scores in results["finetune"]]


def _accuracies(scores):
    return [f"{scores[start]:.1f} %" for start in STARTS]


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
