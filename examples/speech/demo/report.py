"""The demo's table: what was measured, and no more."""

import statistics

from tables import seconds_table, table

RUNS = {"finetune": "fine-tuned from the pre-trained model", "scratch": "from scratch, same budget"}


def describe(manifest):
    """Recordings and minutes (16 kHz) of a manifest, or None where there is none."""
    if not manifest.exists():
        return None
    frames = [int(line.split("\t")[1]) for line in manifest.read_text().splitlines()[1:]]
    return {"recordings": len(frames), "minutes": sum(frames) / 16000 / 60}


def write_table(results):
    """``results`` of the demo as Markdown."""
    parts = [describe_data(results["data"])]
    if "finetune" in results:
        parts.append(_errors(results))
    if "probe" in results:
        parts.append(_probe(results["probe"]))
    parts.append(seconds_table(results["seconds"]))
    return "\n".join(parts)


def compared(results):
    """Rows of the table over all demos: data, labels, measure, from the pre-trained model, from scratch."""
    if "finetune" not in results:
        return []
    errors = (f"{results[run]['cer']:.1f} %" for run in RUNS)
    return [("speech: prompts", f"{results['data']['train']['minutes']:.0f} minutes", "character error", *errors)]


def describe_data(data):
    """Recordings and minutes of each part, as a table."""
    rows = [(s, d["recordings"], f"{d['minutes']:.1f}") for s, d in data.items() if d]
    return table(("part", "recordings", "minutes"), rows)


def _errors(results):
    rows = [
        (what, f"{results[run]['cer']:.1f} %", f"{results[run]['wer']:.1f} %", f"{results['seconds'][run]:.0f}")
        for run, what in RUNS.items()
    ]
    return table(("CTC on held-out recordings", "character error", "word error", "seconds"), rows)


def _probe(probe):
    header = ["layer", "MFCC R2, pre-trained", "untrained"]
    has_letters = probe["chance"] is not None
    if has_letters:
        header += [f"letter accuracy (chance {100 * probe['chance']:.1f} %), pre-trained", "untrained"]
    rows = []
    for pair in zip(probe["trained"], probe["untrained"], strict=True):
        row = [pair[0]["layer"], *(f"{score['mfcc']:.3f}" for score in pair)]
        if has_letters:
            row += [f"{100 * score['letters']:.1f} +- {100 * score['letters_error']:.1f} %" for score in pair]
        rows.append(row)
    return table(header, rows)


def write_full_table(scores, labelled, pretrain_seconds):
    """``scores``: {minutes: {run: [{"cer", "wer"}, one a seed]}} as Markdown, mean and standard deviation.

    ``labelled``: {minutes: the minutes of labels there really were}, which is what the table shows.
    """
    rows = []
    for minutes, runs in scores.items():
        for run, what in RUNS.items():
            cells = []
            for key in ("cer", "wer"):
                values = [s[key] for s in runs[run]]
                cells.append(f"{statistics.mean(values):.1f} +- {statistics.stdev(values):.1f} %")
            rows.append((f"{labelled[minutes]:.1f} min", what, *cells))
    text = table(("labels", "CTC, mean +- standard deviation of 3 seeds", "character error", "word error"), rows)
    return f"{text}\nPre-training took {pretrain_seconds / 60:.0f} minutes.\n"
