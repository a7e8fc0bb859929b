"""Commands that both speech demos run."""

from pathlib import Path

from commands import ROOT, Command
from report import describe

CONFIGS = ROOT / "examples" / "speech"
SPLITS = ("train", "valid", "test")


def preparing(data, own=None):
    """Fetches the prompts, or takes the recordings in ``own``, and lists them in ``data``."""
    words = ["python", "examples/speech/prepare_prompts.py", "--dest", data]
    if own:
        words += ["--data", Path(own).resolve()]
    return Command("prepare", words)


def describe_splits(data):
    """``{split: recordings and minutes}``, None for a split that is not there."""
    return {split: describe(data / f"{split}.tsv") for split in SPLITS}


def scoring(folder, manifest):
    """Decodes ``manifest`` with the best checkpoint of ``folder``."""
    words = ["d2v", "eval-ctc", folder / "checkpoint_best.pt", manifest]
    words += ["--out", folder / "hypotheses.tsv", "--json", folder / "scores.json"]
    return Command(f"score {folder.name}", words, folder / "scores.log", threads=1)


def probing(name, checkpoint, data, split, out, aligner=None):
    """Probes the frozen layers of ``checkpoint`` beside the untrained network; letters, with a CTC model to align."""
    words = ["d2v", "probe", checkpoint, data / "train.tsv", data / f"{split}.tsv", "--untrained", "--json", out]
    if aligner is not None:
        words += ["--align", aligner]
    return Command(name, words)


def spectrogram(name, data, checkpoint, out):
    """Draws one recording of the validation part with a mask of ``checkpoint``."""
    words = ["d2v", "plot", "--utterance", longest(data / "valid.tsv"), "--out", out, "--mask-from", checkpoint]
    return Command(name, words)


def longest(manifest, at_most=160_000):
    """The longest recording of the manifest that still fits a picture (10 s at 16 kHz)."""
    root, *lines = manifest.read_text().splitlines()
    entries = [(int(frames), name) for name, frames in (line.split("\t") for line in lines)]
    fitting = [e for e in entries if e[0] <= at_most] or [min(entries)]
    return Path(root) / max(fitting)[1]
