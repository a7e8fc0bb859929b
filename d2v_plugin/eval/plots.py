"""Pictures of training runs, drawn without a display.

One picture answers one question, with everything on the axis of updates:
``loss.png``, ``variance.png`` (is the target or the prediction collapsing, and do the effective ranks agree),
``ema_decay.png``, for CTC runs ``error_rate.png`` and for classifiers ``score.png``. Several logs are drawn together,
one colour each.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from d2v_plugin.errors import UserError
from d2v_plugin.eval.logs import Run

# colour-blind safe (M. Okabe and K. Ito), darkest first
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", ":", "-.", (0, (1, 1)), (0, (5, 1)))

# what a log may hold -> how it reads in a legend
VARIANCES = {"target_var": "target (teacher)", "pred_var": "prediction (student)"}
SPREADS = {"feature_std": "feature extractor", "student_std": "student", "teacher_std": "teacher"}
RANKS = {"feature_rank": "feature extractor", "student_rank": "student", "teacher_rank": "teacher"}
ERROR_RATES = {"uer": "letters", "wer": "words"}
SCORES = {
    "accuracy": "accuracy (%)",
    "mAP": "mean average precision",
    "mcc": "Matthews correlation (%)",
    "pearson_and_spearman": "Pearson and Spearman correlation (%)",
}


def import_pyplot():
    """matplotlib with the file backend, or one line that says how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("pictures need matplotlib; install it with: pip install matplotlib") from error
    # fairseq opens the root logger, and matplotlib is talkative
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def style_axis(axis, xlabel: str, ylabel: str) -> None:
    """Labels, a faint grid and no frame above or right."""
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.grid(True, color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _from_zero(axis) -> None:
    """Start the vertical axis at 0 and leave room above the highest curve."""
    axis.set_ylim(0, 1.06 * max((float(max(line.get_ydata())) for line in axis.lines), default=1.0) or 1.0)


def save(figure, path: Path) -> Path:
    """Write the picture, close it, and hand its path back."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _present(runs: Sequence[Run], keys: dict[str, str], part: str) -> list[str]:
    return [key for key in keys if any(getattr(run, part).get(key) for run in runs)]


def _curves(axis, runs: Sequence[Run], keys: dict[str, str], part: str = "train") -> None:
    """One colour a quantity for a single run; one colour a run and one dash a quantity for several."""
    names = _present(runs, keys, part)
    for r, run in enumerate(runs):
        for k, key in enumerate(names):
            points = getattr(run, part).get(key)
            if not points:
                continue
            words = [run.name] * (len(runs) > 1) + [keys[key]] * (len(names) > 1 or len(runs) == 1)
            axis.plot(
                *zip(*points, strict=True),
                label=", ".join(words),
                color=COLOURS[(r if len(runs) > 1 else k) % len(COLOURS)],
                linestyle=STYLES[k % len(STYLES)] if len(runs) > 1 else "-",
                linewidth=1.6,
                marker="o" if len(points) < 30 else None,
                markersize=3,
            )
    axis.margins(x=0.02)
    if len(axis.lines) > 1 or len(names) > 1:
        axis.legend(frameon=False, fontsize=9)


def plot_loss(runs: Sequence[Run], out: Path) -> Path:
    """Training loss, and validation loss where it was measured."""
    pyplot = import_pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for r, run in enumerate(runs):
        colour = COLOURS[r % len(COLOURS)]
        for curves, word, dash in ((run.train, "training", "-"), (run.valid, "validation", "--")):
            points = curves.get("loss")
            if points:
                label = word if len(runs) == 1 else f"{run.name}, {word}"
                axis.plot(
                    *zip(*points, strict=True),
                    dash,
                    color=colour,
                    label=label,
                    linewidth=1.6,
                    marker="o" if len(points) < 30 else None,
                    markersize=3,
                )
    style_axis(axis, "update", "loss (as fairseq logs it)")
    axis.margins(x=0.02)
    axis.legend(frameon=False, fontsize=9)
    axis.set_title("Loss", loc="left")
    return save(figure, out / "loss.png")


def plot_variance(runs: Sequence[Run], out: Path) -> Path:
    """Standard deviations of targets and predictions, and the effective ranks beside them when logged.

    Ranks are shown because a target may keep its variance while it loses its content.
    """
    pyplot = import_pyplot()
    panels = [
        (keys, title, label)
        for keys, title, label in (
            (VARIANCES, "Targets and predictions", "standard deviation over frames"),
            (SPREADS, "Representations", "standard deviation over frames"),
            (RANKS, "Effective rank", "effective rank (dimensions)"),
        )
        if _present(runs, keys, "train")
    ]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.2 * len(panels) + 1, 4), layout="constrained", squeeze=False
    )
    for axis, (keys, title, label) in zip(axes[0], panels, strict=True):
        _curves(axis, runs, keys)
        style_axis(axis, "update", label)
        _from_zero(axis)
        axis.set_title(title, loc="left")
    return save(figure, out / "variance.png")


def _unscaled_decay(run: Run) -> Run:
    """data2vec logs the decay times 1000, because fairseq prints three decimals."""
    points = [(update, value / 1000 if value > 1 else value) for update, value in run.train.get("ema_decay", [])]
    return Run(run.name, {"ema_decay": points})


def plot_ema_decay(runs: Sequence[Run], out: Path) -> Path:
    """The teacher's decay over updates."""
    pyplot = import_pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    _curves(axis, [_unscaled_decay(run) for run in runs], {"ema_decay": "EMA decay"})
    style_axis(axis, "update", "EMA decay")
    # 0.9990 to 0.9999 must not be shown as "+9.99e-1" and an offset
    axis.ticklabel_format(axis="y", useOffset=False, style="plain")
    axis.set_title("EMA decay of the teacher", loc="left")
    return save(figure, out / "ema_decay.png")


def plot_error_rates(runs: Sequence[Run], out: Path) -> Path:
    """Error rates measured during CTC validation, in percent; 0 is perfect."""
    pyplot = import_pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    _curves(axis, runs, ERROR_RATES, "valid")
    style_axis(axis, "update", "error rate on validation (%)")
    _from_zero(axis)
    axis.set_title("Greedy decoding during fine-tuning", loc="left")
    return save(figure, out / "error_rate.png")


def plot_scores(runs: Sequence[Run], out: Path) -> Path:
    """What classifiers were measured by on validation, the first of ``SCORES`` that a log has; 0 is the worst."""
    pyplot = import_pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    key = _present(runs, SCORES, "valid")[0]
    _curves(axis, runs, {key: SCORES[key]}, "valid")
    style_axis(axis, "update", f"{SCORES[key]} on validation")
    _from_zero(axis)
    axis.set_title("Classification during fine-tuning", loc="left")
    return save(figure, out / "score.png")


def plot_runs(runs: Sequence[Run], out: Path) -> list[Path]:
    """Every picture that the logs have data for; returns the files written.

    Raises:
        UserError: none of the known quantities is in any log.
    """
    wanted = [
        (plot_loss, any(run.train.get("loss") or run.valid.get("loss") for run in runs)),
        (plot_variance, any(_present(runs, keys, "train") for keys in (VARIANCES, SPREADS, RANKS))),
        (plot_ema_decay, bool(_present(runs, {"ema_decay": ""}, "train"))),
        (plot_error_rates, bool(_present(runs, ERROR_RATES, "valid"))),
        (plot_scores, bool(_present(runs, SCORES, "valid"))),
    ]
    written = [draw(runs, out) for draw, has_data in wanted if has_data]
    if not written:
        raise UserError(
            "the logs hold neither loss, variance, ema_decay, error rates nor scores; give a "
            "hydra_train.log of pre-training or of fine-tuning"
        )
    return written
