"""``make demo-full``: does pre-training on more speech than is labelled pay?

Five languages to pre-train on, three budgets of labels, three seeds.

Scores that are already there are kept, so an interrupted run goes on where it was.
"""

import hashlib
import json

from commands import Command, run_together, training
from parts import CONFIGS, scoring
from report import write_full_table

LANGUAGES = ("fr", "es", "it", "ru")  # English is always in
MINUTES, SEEDS = (3, 10, 20), (1, 2, 3)
FULL_UPDATES = (8000, 2400)  # pre-training, CTC


def run_full(out, updates):
    """Everything goes below ``out``; prints and writes ``results.md``. ``updates``: pre-training, CTC."""
    data = out / "data"
    words = ["python", "examples/speech/prepare_prompts.py", "--dest", data, "--languages", *LANGUAGES]
    print("\n== Data: the prompts of five languages", flush=True)
    run_together(Command("prepare", words))
    labelled = {minutes: write_budget(data, minutes) for minutes in MINUTES}

    print("\n== Pre-training on all of them", flush=True)
    took = out / "pretrain" / "seconds.json"
    if not took.exists():
        more = ("dataset.train_subset=pretrain",)
        config = CONFIGS / "demo_pretrain.yaml"
        (pretrain,) = run_together(training("pretrain", out, data, config, updates[0], 2, *more, resume=True))
        took.write_text(json.dumps(pretrain.seconds))

    scores = {}
    for minutes in MINUTES:
        for seed in SEEDS:
            print(f"\n== {minutes} minutes of labels, seed {seed}", flush=True)
            for run, result in fine_tune(out, data, minutes, seed, updates[1]).items():
                scores.setdefault(minutes, {}).setdefault(run, []).append(result)
    table = write_full_table(scores, labelled, json.loads(took.read_text()))
    (out / "results.json").write_text(json.dumps(scores, indent=2) + "\n")
    (out / "results.md").write_text(table)
    print(f"\n{table}\nAll of it is in {out}")


def fine_tune(out, data, minutes, seed, updates):
    """Both runs of one budget and seed, side by side; ``{run: scores}``."""
    folders = {run: out / f"{run}_{minutes}min_seed{seed}" for run in ("finetune", "scratch")}
    if not all((folder / "scores.json").exists() for folder in folders.values()):
        more = [f"model.w2v_path={out / 'pretrain' / 'checkpoint_last.pt'}", f"common.seed={seed}"]
        more.append(f"dataset.train_subset=train_{minutes}min")
        extra = {"finetune": [], "scratch": ["model.no_pretrained_weights=true"]}
        run_together(
            *(
                training(folder.name, out, data, CONFIGS / "demo_ctc.yaml", updates, 1, *more, *extra[run], resume=True)
                for run, folder in folders.items()
            )
        )
        run_together(*(scoring(folder, data / "test.tsv") for folder in folders.values()))
    return {run: json.loads((folder / "scores.json").read_text()) for run, folder in folders.items()}


def write_budget(data, minutes):
    """``train_<minutes>min``: recordings of up to 12 s in the order of their hash, until the minutes are reached.

    Returns the minutes chosen (16 kHz), and says so when there were not as many as asked for.
    """
    root, *lines = (data / "train.tsv").read_text().splitlines()
    letters = (data / "train.ltr").read_text().splitlines()
    pairs = sorted(zip(lines, letters, strict=True), key=lambda p: hashlib.md5(p[0].encode()).hexdigest())
    wanted = left = minutes * 60 * 16000
    chosen = []
    for line, text in pairs:
        frames = int(line.split("\t")[1])
        if frames <= 12 * 16000 and left > 0:
            chosen.append((line, text))
            left -= frames
    (data / f"train_{minutes}min.tsv").write_text("\n".join([root, *(line for line, _ in chosen)]) + "\n")
    (data / f"train_{minutes}min.ltr").write_text("\n".join(text for _, text in chosen) + "\n")
    actual = (wanted - left) / 16000 / 60
    if left > 0:
        print(f"train_{minutes}min: all recordings of up to 12 s make {actual:.1f} minutes, not {minutes}", flush=True)
    return actual
