"""Pre-trains data2vec 1.0 on recorded speech, fine-tunes with and without it, scores and draws."""

import json

from commands import ROOT, Command, shown, training
from full import FULL_UPDATES, run_full
from parts import CONFIGS, describe_splits, preparing, probing, scoring, spectrogram
from report import compared, write_table
from stages import Stages

__all__ = ["HELP", "add_arguments", "compared", "run"]

HELP = "recorded speech: pre-train (data2vec 1.0), fine-tune with CTC, score, draw"
UPDATES = (2000, 2400)  # pre-training, CTC


def add_arguments(parser):
    parser.add_argument("--data", help="folder with your own recordings instead of the telephone prompts")
    parser.add_argument("--full", action="store_true", help="five languages, three label budgets, three seeds (hours)")
    parser.add_argument("--updates", type=int, nargs=2, metavar=("PRETRAIN", "CTC"), help="of the two trainings")


def run(args, out=None):
    """Results go to ``out``: by default ``demo/speech``, ``demo/own`` with own data, ``demo/full`` if asked."""
    name = "full" if args.full else "own" if args.data else "speech"
    out = out or ROOT / "demo" / name
    if args.full and args.data:
        raise SystemExit("--full compares on the telephone prompts; leave --data out")
    if args.full:
        return run_full(out, args.updates or FULL_UPDATES)
    return Demo(out, args.updates or UPDATES).run(args.data)


class Demo:
    """The stages of ``make demo``; each adds what it measured to ``self.results``."""

    def __init__(self, out, updates):
        self.out, self.data = out, out / "data"
        self.pretrain_updates, self.ctc_updates = updates
        self.stages = Stages(out)
        self.results = self.stages.results
        self.pretrained = out / "pretrain" / "checkpoint_last.pt"

    def run(self, own_data=None):
        title = "Data: recorded speech at 16 kHz, split by what is said"
        stale = ("pretrain", "finetune", "scratch", "pictures", "probe.json")
        self.stages.prepare(title, preparing(self.data, own_data), *stale)
        self.results["data"] = describe_splits(self.data)
        self.pretrain()
        labelled = (self.data / "test.ltr").exists()
        if labelled:
            self.finetune()
            self.score()
        self.probe(labelled)
        self.draw(labelled)
        return self.stages.finish(write_table)

    def pretrain(self):
        config = CONFIGS / "demo_pretrain.yaml"
        command = training("pretrain", self.out, self.data, config, self.pretrain_updates, threads=2)
        self.stages.step("Pre-training: data2vec 1.0, no labels", command)

    def finetune(self):
        extra = {"finetune": [], "scratch": ["model.no_pretrained_weights=true"]}
        config, start = CONFIGS / "demo_ctc.yaml", f"model.w2v_path={self.pretrained}"
        runs = [
            training(run, self.out, self.data, config, self.ctc_updates, 1, start, *more) for run, more in extra.items()
        ]
        self.stages.step("Fine-tuning with CTC: from that checkpoint and, with the same budget, from scratch", *runs)

    def score(self):
        runs = ("finetune", "scratch")
        commands = [scoring(self.out / run, self.data / "test.tsv") for run in runs]
        self.stages.step("Held-out recordings, decoded greedily", *commands)
        for run in runs:
            self.results[run] = json.loads((self.out / run / "scores.json").read_text())

    def probe(self, labelled):
        split = "test" if labelled else "valid"
        recordings = {part: found["recordings"] for part, found in self.results["data"].items() if found}
        if recordings["train"] < 10 or recordings.get(split, 0) < 2:
            found = f"{recordings['train']} and {recordings.get(split, 0)}"
            print(f"\n== No probe: it takes 10 recordings to fit and 2 to score, here are {found}", flush=True)
            return
        # of all CTC models here, the one that owes nothing to pre-training
        aligner = self.out / "scratch" / "checkpoint_best.pt" if labelled else None
        command = probing("probe", self.pretrained, self.data, split, self.out / "probe.json", aligner)
        self.stages.step("What pre-training alone learned: frozen features against the untrained network", command)
        self.results["probe"] = json.loads((self.out / "probe.json").read_text())

    def draw(self, labelled):
        pictures = self.out / "pictures"
        logs = {run: shown(self.out / run / "train.log") for run in ("pretrain", "finetune", "scratch")}
        commands = [Command("curves", ["d2v", "plot", f"pretrain={logs['pretrain']}", "--out", pictures])]
        if labelled:
            words = ["d2v", "plot", f"pre-trained={logs['finetune']}", f"scratch={logs['scratch']}"]
            commands.append(Command("errors", [*words, "--out", pictures / "ctc"]))
        commands.append(spectrogram("spectrogram", self.data, self.pretrained, pictures))
        for command in commands:
            self.stages.step(f"Picture: {command.name}", command)
