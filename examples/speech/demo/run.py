"""The demo: pre-train on recorded speech, fine-tune with and without it, score, draw. ``make demo`` runs it.

Everything goes through commands that are printed before they run, so that each can be copied. Results,
pictures and logs are left in ``demo/``.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path

from commands import ROOT, Command, CommandFailed, run_together, shown, training
from full import FULL_UPDATES, run_full, scoring
from report import describe, write_table

UPDATES = (2000, 2400)  # pre-training, CTC


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with your own recordings instead of the telephone prompts")
    parser.add_argument("--out", help="folder for all it writes (default: demo, with --data demo/own)")
    parser.add_argument("--full", action="store_true", help="five languages, three label budgets, three seeds (hours)")
    parser.add_argument("--updates", type=int, nargs=2, metavar=("PRETRAIN", "CTC"), help="of the two trainings")
    args = parser.parse_args()
    if args.full and args.data:
        parser.error("--full compares on the telephone prompts; leave --data out")
    out = (ROOT / (args.out or ("demo/own" if args.data else "demo"))).resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill stops the trainings, too
    try:
        if args.full:
            run_full(out, args.updates or FULL_UPDATES)
        else:
            Demo(out, args.updates or UPDATES).run(args.data)
    except CommandFailed as failure:
        print(f"d2v demo: error: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; logs so far are in {out}", file=sys.stderr)
        return 130
    return 0


class Demo:
    """The stages of ``make demo``; each adds what it measured to ``self.results``."""

    def __init__(self, out, updates):
        self.out, self.data = out, out / "data"
        self.pretrain_updates, self.ctc_updates = updates
        self.results = {}
        self.start = time.monotonic()

    def run(self, own_data=None):
        self.prepare(own_data)
        self.clear()
        self.pretrain()
        labelled = (self.data / "test.ltr").exists()
        if labelled:
            self.finetune()
            self.score()
        self.probe(labelled)
        self.draw(labelled)
        self.results["seconds"]["total"] = time.monotonic() - self.start
        (self.out / "results.json").write_text(json.dumps(self.results, indent=2) + "\n")
        table = write_table(self.results)
        (self.out / "results.md").write_text(table)
        print(f"\n{table}\nLogs, checkpoints, hypotheses and pictures are in {self.out}")

    def step(self, title, *commands):
        print(f"\n== {title}", flush=True)
        for command in run_together(*commands):
            self.results.setdefault("seconds", {})[command.name] = command.seconds

    def prepare(self, own_data):
        words = ["python", "examples/speech/prepare_prompts.py", "--dest", self.data]
        if own_data:
            words += ["--data", Path(own_data).resolve()]
        self.step("Data: recorded speech at 16 kHz, split by what is said", Command("prepare", words))
        self.results["data"] = {split: describe(self.data / f"{split}.tsv") for split in ("train", "valid", "test")}

    def clear(self):
        """Remove what an earlier demo left in the same folder, once it is sure that there is something to train on."""
        if (self.out / "results.md").exists():
            print(f"\nreplacing the earlier results in {self.out} (--out keeps them)", flush=True)
        for stale in ("pretrain", "finetune", "scratch", "pictures"):
            shutil.rmtree(self.out / stale, ignore_errors=True)
        for stale in ("results.md", "results.json", "probe.json"):
            (self.out / stale).unlink(missing_ok=True)

    def pretrain(self):
        command = training("pretrain", self.out, self.data, "demo_pretrain", self.pretrain_updates, threads=2)
        self.step("Pre-training: data2vec 1.0, no labels", command)

    def finetune(self):
        start = self.out / "pretrain" / "checkpoint_last.pt"
        runs = [
            training("finetune", self.out, self.data, "demo_ctc", self.ctc_updates, 1, f"model.w2v_path={start}"),
            training(
                "scratch",
                self.out,
                self.data,
                "demo_ctc",
                self.ctc_updates,
                1,
                f"model.w2v_path={start}",
                "model.no_pretrained_weights=true",
            ),
        ]
        self.step("Fine-tuning with CTC: from that checkpoint and, with the same budget, from scratch", *runs)

    def score(self):
        commands = [scoring(self.out / run, self.data / "test.tsv") for run in ("finetune", "scratch")]
        self.step("Held-out recordings, decoded greedily", *commands)
        for run in ("finetune", "scratch"):
            self.results[run] = json.loads((self.out / run / "scores.json").read_text())

    def probe(self, labelled):
        split = "test" if labelled else "valid"
        recordings = {part: found["recordings"] for part, found in self.results["data"].items() if found}
        if recordings["train"] < 10 or recordings.get(split, 0) < 2:
            found = f"{recordings['train']} and {recordings.get(split, 0)}"
            print(f"\n== No probe: it takes 10 recordings to fit and 2 to score, here are {found}", flush=True)
            return
        words = ["d2v", "probe", self.out / "pretrain" / "checkpoint_last.pt", self.data / "train.tsv"]
        words += [self.data / f"{split}.tsv", "--untrained", "--json", self.out / "probe.json"]
        if labelled:
            # of all CTC models here, the one that owes nothing to pre-training
            words += ["--align", self.out / "scratch" / "checkpoint_best.pt"]
        self.step(
            "What pre-training alone learned: frozen features against the untrained network", Command("probe", words)
        )
        self.results["probe"] = json.loads((self.out / "probe.json").read_text())

    def draw(self, labelled):
        pictures = self.out / "pictures"
        logs = {run: self.out / run / "train.log" for run in ("pretrain", "finetune", "scratch")}
        commands = [Command("curves", ["d2v", "plot", f"pretrain={shown(logs['pretrain'])}", "--out", pictures])]
        if labelled:
            words = ["d2v", "plot", f"pre-trained={shown(logs['finetune'])}", f"scratch={shown(logs['scratch'])}"]
            commands.append(Command("errors", [*words, "--out", pictures / "ctc"]))
        words = ["d2v", "plot", "--utterance", _longest(self.data / "valid.tsv"), "--out", pictures]
        words += ["--mask-from", self.out / "pretrain" / "checkpoint_last.pt"]
        commands.append(Command("spectrogram", words))
        for command in commands:
            self.step(f"Picture: {command.name}", command)


def _longest(manifest, at_most=160_000):
    """The longest recording of the manifest that still fits a picture (10 s at 16 kHz)."""
    root, *lines = manifest.read_text().splitlines()
    entries = [(int(frames), name) for name, frames in (line.split("\t") for line in lines)]
    fitting = [e for e in entries if e[0] <= at_most] or [min(entries)]
    return Path(root) / max(fitting)[1]


if __name__ == "__main__":
    sys.exit(main())
