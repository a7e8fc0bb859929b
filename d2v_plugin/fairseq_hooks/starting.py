"""Three ways to start a run, told apart before anything is loaded.

- *resume*: go on exactly where a run stopped: weights, teacher, optimiser, schedule, place in the data.
- *init_from*: the weights of a file and nothing else: new optimiser and schedule, update 0.
- *fresh*: nothing is loaded.

fairseq decides by whether ``checkpoint_last.pt`` happens to be there, and writes over the checkpoints of a run that it
does not go on with. Here ``checkpoint.start`` says what is wanted (``auto`` where it is not given), and a start that
would write over the checkpoints of another run is refused. ``checkpoint.init_from`` is another name of fairseq's
``finetune_from_model``. None of these is a field of fairseq's schema, so a command line adds them with a plus sign:
``+checkpoint.start=resume +checkpoint.init_from=FILE.pt``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fairseq.file_io import PathManager
from omegaconf import OmegaConf

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.fairseq_hooks.run_differences import differences
from d2v_plugin.modalities import modality_name

RESUME, INIT, FRESH, AUTO = "resume", "init_from", "fresh", "auto"
# fairseq's roberta reads the weights of data2vec_text, as its recipes for GLUE do, and the other way round
SAME_WEIGHTS = {"data2vec_text", "roberta"}
TEACHERS = ("file", "student")
DEFAULT_FILE = "checkpoint_last.pt"
RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")
# what a run writes to go on from; crash.pt is a record of what went wrong
CHECKPOINT = re.compile(r"checkpoint[\w.-]*\.pt")


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    ``kind``: RESUME, INIT or FRESH; ``path``: the file to read, without a process's suffix, None for FRESH;
    ``teacher``: with INIT, "file" or "student"; ``aside``: names in ``save_dir`` to be moved out of the way first;
    ``lines``: for the log.
    """

    kind: str
    path: str | None = None
    teacher: str = "file"
    aside: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What the configuration says about starting. ``init``: init_from or finetune_from_model; ``restore``: a
    restore_file other than fairseq's default; ``resets``: which of fairseq's reset flags are set."""

    save_dir: str
    last: str
    start: str
    init: str | None
    teacher: str
    restore: str | None
    once: str | None
    resets: tuple[str, ...]
    saves: bool
    suffix: str

    @classmethod
    def of(cls, cfg: Any, suffix: str = "") -> Asked:
        """From ``cfg.checkpoint``.

        Raises:
            UserError: values that are none, or that contradict each other.
        """

        def value(name: str) -> Any:
            return OmegaConf.select(cfg, name) if OmegaConf.is_config(cfg) else getattr(cfg, name, None)

        start, teacher = value("start") or AUTO, value("init_teacher") or TEACHERS[0]
        if start not in (AUTO, RESUME, FRESH):
            raise UserError(f"checkpoint.start={start} is none of {AUTO}, {RESUME} and {FRESH}; choose one of them")
        if teacher not in TEACHERS:
            raise UserError(f"checkpoint.init_teacher={teacher} is neither file nor student; choose one of them")
        named, init = value("finetune_from_model"), value("init_from")
        if named and init and named != init:
            raise UserError(
                f"checkpoint.init_from={init} and checkpoint.finetune_from_model={named} mean the same and differ; "
                "leave one of them out"
            )
        restore = value("restore_file")
        asked = cls(
            save_dir=value("save_dir"),
            last=os.path.join(value("save_dir"), f"checkpoint_last{suffix}.pt"),
            start=start,
            init=init or named or None,
            teacher=teacher,
            restore=None if restore in (None, DEFAULT_FILE) else restore,
            once=value("continue_once"),
            resets=tuple(name for name in RESETS if value(name)),
            saves=not value("no_save"),
            suffix=suffix,
        )
        asked._check()
        return asked

    def _check(self) -> None:
        if self.init and (self.restore or self.resets):
            other = "restore_file" if self.restore else self.resets[0]
            raise UserError(
                f"checkpoint.init_from takes the weights of {self.init} and starts everything else anew, so "
                f"checkpoint.{other} beside it means nothing; leave one of them out"
            )
        if self.start == FRESH and (self.restore or self.resets):
            other = "restore_file" if self.restore else self.resets[0]
            raise UserError(
                f"checkpoint.start=fresh and checkpoint.{other} contradict each other; for the weights of a file alone "
                "use +checkpoint.init_from=FILE, to go on with a run +checkpoint.start=resume"
            )
        if self.start == RESUME and "reset_optimizer" in self.resets:
            raise UserError(
                "checkpoint.start=resume goes on exactly, and checkpoint.reset_optimizer=true does not; leave one out"
            )

    def own(self, path: str) -> str:
        """The part of a checkpoint that this process reads, where each process has its own."""
        return path.replace(".pt", f"{self.suffix}.pt") if self.suffix else path

    @property
    def held(self) -> list[str]:
        """Checkpoints that are in ``save_dir``, which this run will write to."""
        folder = Path(self.save_dir)
        if not self.saves or not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if CHECKPOINT.fullmatch(path.name))


def decide(cfg: Any, suffix: str = "") -> Start:
    """Which of the three it is.

    Args:
        cfg: fairseq's whole configuration.
        suffix: of checkpoint names, where each process saves its own.
    Raises:
        UserError: it cannot be, or it would write over another run without having been asked to.
    """
    asked = Asked.of(cfg.checkpoint, suffix)
    if asked.start == FRESH:
        return _fresh(asked, cfg)
    if asked.restore is not None:
        return _from_file(asked, cfg)
    if PathManager.isfile(asked.last):
        return _from_last(asked, cfg)
    if asked.held:
        raise UserError(
            f"checkpoint.save_dir={asked.save_dir} holds {_some(asked.held)} of an earlier run and no "
            f"{os.path.basename(asked.last)}: to go on name one, checkpoint.restore_file={asked.save_dir}/"
            f"{asked.held[-1]}; to start over choose another save_dir, or add +checkpoint.start=fresh"
        )
    if asked.once:
        return _resumed(asked.once, cfg, "checkpoint.continue_once")
    if asked.start == RESUME:
        raise UserError(
            f"checkpoint.start=resume and there is no {asked.last}; correct checkpoint.save_dir, or leave start out to "
            "begin a run"
        )
    return _init(asked, cfg) if asked.init else _nothing(asked)


def _fresh(asked: Asked, cfg: Any) -> Start:
    aside = tuple(asked.held)
    if asked.init is None:
        return replace(_nothing(asked), aside=aside)
    if aside and _within(asked.init, asked.save_dir):
        raise UserError(
            f"checkpoint.start=fresh moves the checkpoints of checkpoint.save_dir={asked.save_dir} aside, and "
            f"checkpoint.init_from={asked.init} is one of them; choose another save_dir"
        )
    return replace(_init(asked, cfg), aside=aside)


def _from_file(asked: Asked, cfg: Any) -> Start:
    """``checkpoint.restore_file``: a resume from elsewhere or, without the optimiser, weights only."""
    path = asked.own(asked.restore)
    if not PathManager.isfile(path):
        raise UserError(
            f"checkpoint.restore_file={asked.restore} does not exist; correct the path, or leave it out to resume from "
            "checkpoint.save_dir"
        )
    if asked.held and ("reset_optimizer" in asked.resets or not _within(path, asked.save_dir)):
        raise UserError(
            f"checkpoint.restore_file={asked.restore} would start another run over {_some(asked.held)} in "
            f"checkpoint.save_dir={asked.save_dir}; choose another save_dir, or leave restore_file out to go on with "
            "the run that is there"
        )
    if "reset_optimizer" in asked.resets:
        return _init(replace(asked, init=asked.restore), cfg)
    return _resumed(path, cfg, "checkpoint.restore_file", asked.resets)


def _from_last(asked: Asked, cfg: Any) -> Start:
    """``save_dir`` holds a run: go on with it, or refuse."""
    if "reset_optimizer" in asked.resets:
        raise UserError(
            f"checkpoint.reset_optimizer=true would start a new run over {_some(asked.held)} in checkpoint.save_dir="
            f"{asked.save_dir}; take the weights to another folder: +checkpoint.init_from={asked.last} "
            "checkpoint.save_dir=NEW"
        )
    if asked.init is not None and asked.start == AUTO:
        began = _began_with(_saved(asked.last))
        if not _same_file(began, asked.init):
            raise UserError(
                f"checkpoint.save_dir={asked.save_dir} holds a run that began "
                f"{f'with the weights of {began}' if began else 'without the weights of another'}, not with "
                f"checkpoint.init_from={asked.init}; choose another save_dir, add +checkpoint.start=resume to go on "
                "with that run, or +checkpoint.start=fresh to start over"
            )
    return _resumed(asked.last, cfg, None, asked.resets)


def _resumed(path: str, cfg: Any, why: str | None, resets: tuple[str, ...] = ()) -> Start:
    if not PathManager.isfile(path):
        raise UserError(f"{why}={path} does not exist; correct the path")
    saved = _saved(path)
    if saved and saved.get("last_optimizer_state") is None:
        raise UserError(
            f"{path} holds no optimizer state, so a run cannot go on from it exactly; take its weights alone: "
            f"+checkpoint.init_from={path} checkpoint.save_dir=NEW"
        )
    reasons = [why] if why else []
    reasons += [f"checkpoint.{name}=true" for name in resets]
    told = f" ({', '.join(reasons)})" if reasons else ""
    updates = _updates(saved)
    limit = cfg.optimization.max_update
    lines = [f"start: resume from {path} at update {updates}{f' of {limit}' if limit else ''}{told}"]
    if limit and updates is not None and updates >= limit:
        lines[0] += "; nothing is left to do, raise optimization.max_update to go on"
    changed = differences(saved.get("cfg"), cfg)
    if changed:
        lines.append(f"start: this run differs from the one that saved it: {changed}")
    return Start(RESUME, path, lines=tuple(lines))


def _init(asked: Asked, cfg: Any) -> Start:
    path = asked.init
    if not PathManager.isfile(asked.own(path)):
        raise UserError(f"checkpoint.init_from={asked.own(path)} does not exist; correct the path")
    saved = _saved(asked.own(path))
    _check_model(saved, cfg, path)
    has_teacher = any(key.rpartition(".")[2] == "_ema" for key in saved.get("model") or {})
    if asked.teacher == "student":
        teacher = "the teacher starts as a copy of the student (checkpoint.init_teacher=student)"
    elif has_teacher:
        teacher = "student and teacher"
    else:
        teacher = "it holds no teacher; one that the model needs starts as a copy of the student"
    updates = _updates(saved)
    at = "" if updates is None else f", saved at update {updates}"
    begin = "optimizer, schedules and data begin at update 0"
    if asked.resets and "reset_dataloader" not in asked.resets:
        begin = "optimizer and schedules begin at update 0, data goes on (checkpoint.reset_dataloader=false)"
    line = f"start: init_from {path}{at}: weights only ({teacher}); {begin}"
    return Start(INIT, path, asked.teacher, lines=(line,))


def _nothing(asked: Asked) -> Start:
    return Start(FRESH, lines=(f"start: fresh at update 0, nothing is loaded; checkpoints go to {asked.save_dir}",))


def _check_model(saved: dict, cfg: Any, path: str) -> None:
    """Raises ``UserError`` where the file says that its weights are of another kind of model."""
    models = [part.get("model") or {} for part in (saved.get("cfg") or {}, cfg)]
    names = [model.get("_name") for model in models]
    modalities = [model.get("supported_modality") for model in models]
    if None not in modalities:
        modalities = [modality_name(modality) for modality in modalities]
    # a model of several modalities names none
    same = names[0] == names[1] and (None in modalities or modalities[0] == modalities[1])
    if None in names or same or set(names) == SAME_WEIGHTS:
        return
    found, own = (f"{name} of {of}" if of else name for name, of in zip(names, modalities, strict=True))
    raise UserError(
        f"checkpoint.init_from={path} holds a {found} and this run trains a {own}; give a checkpoint of that model "
        "(fine-tuning names its pre-trained file in the model's own field, see its recipe)"
    )


def move_aside(start: Start, save_dir: str) -> str | None:
    """Move ``start.aside`` into a new folder ``earlier_N`` of ``save_dir``; returns a line for the log."""
    if not start.aside:
        return None
    taken = {path.name for path in Path(save_dir).iterdir()}
    number = next(n for n in range(1, len(taken) + 2) if f"earlier_{n}" not in taken)
    folder = Path(save_dir, f"earlier_{number}")
    folder.mkdir()
    for name in start.aside:
        os.replace(Path(save_dir, name), folder / name)
    return f"start: checkpoint.start=fresh: {_some(start.aside)} of the earlier run now lie in {folder}"


def _saved(path: str) -> dict:
    """What a checkpoint holds, tensors left in the file; {} for a remote one."""
    if PathManager.path_requires_pathmanager(path):
        return {}
    state = read_checkpoint(path, keys=("model",), verify=False)
    cfg = state.get("cfg")
    return {**state, "cfg": OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else cfg}


def _updates(saved: dict) -> int | None:
    history = saved.get("optimizer_history") or [{}]
    return history[-1].get("num_updates")


def _began_with(saved: dict) -> str | None:
    """The file whose weights a saved run began with."""
    checkpoint = (saved.get("cfg") or {}).get("checkpoint") or {}
    return checkpoint.get("init_from") or checkpoint.get("finetune_from_model")


def _same_file(one: str | None, other: str) -> bool:
    return one is not None and os.path.realpath(one) == os.path.realpath(other)


def _within(path: str, folder: str) -> bool:
    return os.path.dirname(os.path.realpath(path)) == os.path.realpath(folder)


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
