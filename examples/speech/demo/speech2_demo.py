"""Pre-trains data2vec 1.0 and 2.0 side by side for the same minutes on recorded speech, and compares what they learned.

Both have the same sizes and the same front end. How many updates fit into the minutes is timed first, on this machine,
with both running, so that each run has its whole schedule. Their frozen features are probed, then both are fine-tuned
with CTC. Letters are found in the recordings by a CTC model trained from scratch, which owes nothing to either.
"""

import json

from commands import EVENT, ROOT, Command, shown, training
from parts import CONFIGS, describe_splits, preparing, probing, scoring, spectrogram
from report import describe_data
from stages import Stages
from tables import seconds_table, table

HELP = "recorded speech: data2vec 2.0 beside 1.0 at equal minutes, compared by frozen features and CTC"
VERSIONS = {"v1": ("data2vec 1.0", "demo_pretrain"), "v2": ("data2vec 2.0", "demo_pretrain_v2")}
MINUTES = 3.0  # of pre-training, each
TIMING_UPDATES = {"v1": 150, "v2": 75}  # take about as long as each other
TIMING_INTERVAL = 25  # updates; the first one is not counted
CTC_UPDATES = 1500


def add_arguments(parser):
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"of pre-training, each (default {MINUTES:g})")
    parser.add_argument("--ctc-updates", type=int, default=CTC_UPDATES, help="of each fine-tuning; 0 for none")


def run(args, out=None):
    """Results go to ``out``, by default ``demo/speech2``."""
    Demo(out or ROOT / "demo" / "speech2", args.minutes, args.ctc_updates).run()


class Demo:
    """The stages; each adds what it measured to ``self.results``."""

    def __init__(self, out, minutes, ctc_updates):
        self.out, self.data = out, out / "data"
        self.minutes, self.ctc_updates = minutes, ctc_updates
        self.stages = Stages(out)
        self.results = self.stages.results
        self.checkpoints = {version: out / version / "checkpoint_last.pt" for version in VERSIONS}

    def run(self):
        title = "Data: recorded speech at 16 kHz, split by what is said"
        runs = [f"{name}{version}" for version in VERSIONS for name in ("", "time-", "ctc-")]
        stale = (*runs, "scratch", "pictures", *(f"probe-{version}.json" for version in VERSIONS))
        self.stages.prepare(title, preparing(self.data), *stale)
        self.results["data"] = describe_splits(self.data)
        self.pretrain(self.time())
        self.finetune()
        self.probe()
        self.draw()
        self.stages.finish(write_table)

    def time(self):
        """``{version: updates}`` that fit into the minutes, with both running."""
        commands = [
            self._pretraining(f"time-{version}", version, TIMING_UPDATES[version], TIMING_INTERVAL)
            for version in VERSIONS
        ]
        self.stages.step("How many updates fit into the minutes", *commands)
        rates = {v: updates_per_second(self.out / f"time-{v}" / "train.log") for v in VERSIONS}
        updates = {version: round(60 * self.minutes * rate, -1) for version, rate in rates.items()}
        return {version: max(10, int(count)) for version, count in updates.items()}

    def pretrain(self, updates):
        commands = [self._pretraining(version, version, updates[version]) for version in VERSIONS]
        self.stages.step(f"Pre-training: {self.minutes:g} minutes of each, no labels", *commands)
        self.results["updates"] = updates

    def _pretraining(self, name, version, updates, log_interval=50):
        config = CONFIGS / f"{VERSIONS[version][1]}.yaml"
        return training(name, self.out, self.data, config, updates, 1, f"common.log_interval={log_interval}")

    def finetune(self):
        """CTC from both, then from scratch."""
        if not self.ctc_updates:
            return
        runs = [self._ctc(f"ctc-{version}", self.checkpoints[version], 1) for version in VERSIONS]
        self.stages.step("Fine-tuning with CTC, from each", *runs)
        scratch = self._ctc("scratch", self.checkpoints["v1"], 2, "model.no_pretrained_weights=true")
        self.stages.step("The same from scratch", scratch)
        names = [*(f"ctc-{version}" for version in VERSIONS), "scratch"]
        for pair in (names[:2], names[2:]):
            commands = [scoring(self.out / name, self.data / "test.tsv") for name in pair]
            self.stages.step("Held-out recordings, decoded greedily", *commands)
        self.results["ctc"] = {name: json.loads((self.out / name / "scores.json").read_text()) for name in names}

    def _ctc(self, name, start, threads, *more):
        overrides = (f"model.w2v_path={start}", *more)
        return training(name, self.out, self.data, CONFIGS / "demo_ctc.yaml", self.ctc_updates, threads, *overrides)

    def probe(self):
        aligner = self.out / "scratch" / "checkpoint_best.pt" if self.ctc_updates else None
        for version, (name, _) in VERSIONS.items():
            out = self.out / f"probe-{version}.json"
            command = probing(f"probe {version}", self.checkpoints[version], self.data, "test", out, aligner)
            self.stages.step(f"Frozen features of {name} against its untrained network", command)
        self.results["probe"] = {v: json.loads((self.out / f"probe-{v}.json").read_text()) for v in VERSIONS}

    def draw(self):
        pictures = self.out / "pictures"
        logs = [f"{VERSIONS[version][0]}={shown(self.out / version / 'train.log')}" for version in VERSIONS]
        commands = [Command("curves", ["d2v", "plot", *logs, "--out", pictures])]
        commands.append(spectrogram("masks", self.data, self.checkpoints["v2"], pictures))
        for command in commands:
            self.stages.step(f"Picture: {command.name}", command)


def updates_per_second(log):
    """The rate of a training once it runs evenly: the mean over its intervals but the first."""
    events = [EVENT.search(line) for line in log.read_text().splitlines()]
    rates = [float(json.loads(event[2])["ups"]) for event in events if event and event[1] == "train_inner"]
    kept = rates[1:] or rates
    return len(kept) / sum(1 / rate for rate in kept)


def write_table(results):
    """``results`` as Markdown."""
    parts = [describe_data(results["data"]), _pretraining(results)]
    if "ctc" in results:
        parts.append(_ctc(results["ctc"]))
    return "\n".join([*parts, _probe(results["probe"]), seconds_table(results["seconds"])])


def _pretraining(results):
    rows = [
        (name, results["updates"][version], f"{results['seconds'][version]:.0f}")
        for version, (name, _) in VERSIONS.items()
    ]
    return table(("pre-training, side by side", "updates", "seconds"), rows)


def _ctc(scores):
    names = {f"ctc-{version}": f"fine-tuned from {name}" for version, (name, _) in VERSIONS.items()}
    names["scratch"] = "from scratch"
    rows = [(what, f"{scores[run]['cer']:.1f} %", f"{scores[run]['wer']:.1f} %") for run, what in names.items()]
    return table(("CTC on held-out recordings", "character error", "word error"), rows)


def _probe(probe):
    chance = probe["v1"]["chance"]
    header = ["frozen features", "layer", "MFCC R2"]
    header.append("letters" if chance is None else f"letter accuracy (chance {100 * chance:.1f} %)")
    rows = []
    for version, (name, _) in VERSIONS.items():
        for state, what in (("trained", name), ("untrained", f"{name}, untrained")):
            rows += [
                (what, score["layer"], f"{score['mfcc']:.3f}", _accuracy(score)) for score in probe[version][state]
            ]
    return table(header, rows)


def _accuracy(score):
    if score["letters"] is None:
        return "-"
    return f"{100 * score['letters']:.1f} +- {100 * score['letters_error']:.1f} %"
