"""A recipe's batch in the units of its data: seconds of audio, images, or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2v_plugin.errors import UserError

AUDIO, IMAGE, TEXT = "audio", "image", "text"
UNITS = {AUDIO: "s of audio", IMAGE: "images", TEXT: "tokens"}
# of LibriSpeech
LONGEST_SECONDS = 35.2
ROWS = {AUDIO: "recordings", IMAGE: "images", TEXT: "blocks"}


@dataclass(frozen=True)
class Recipe:
    """What decides a recipe's batch.

    ``kind``: AUDIO, IMAGE or TEXT; ``field``: "dataset.max_tokens" or "dataset.batch_size", of which ``micro`` is the
    value for one GPU and one pass; ``row_size``: field's units in the longest row (samples of the longest crop, 1 for
    images, tokens of a block, 1 where rows are counted); ``rates``: the learning rates, by the keys that set them.
    """

    name: str
    path: Path
    cfg: Any
    kind: str
    field: str
    micro: int
    gpus: int
    update_freq: int
    rates: dict[str, float]
    updates: int
    row_size: int
    pretrains: bool

    @property
    def lr(self) -> float:
        """The highest learning rate."""
        return max(self.rates.values())

    @property
    def side(self) -> int:
        """Pixels of an image's side."""
        return int(self.cfg.task.input_size)

    @property
    def batch(self) -> int:
        """Of an update, in units of ``field``."""
        return self.gpus * self.update_freq * self.uncut(self.micro)

    @property
    def multiple(self) -> int:
        """Rows to a multiple of which fairseq cuts batches that have more."""
        return int(self.cfg.dataset.required_batch_size_multiple)

    def uncut(self, amount: float) -> int:
        """Of up to ``amount`` units of ``field`` those that reach the model in one pass.

        Images and blocks are as long as each other, so a pass holds whole rows, and of more than ``multiple`` only a
        multiple; fairseq leaves the others for the next pass. Recordings differ in length, and ``amount`` is only the
        most that a pass may hold.
        """
        if self.kind == AUDIO:
            return int(amount)
        rows = int(amount // self.field_row)
        return self.field_row * (rows - rows % self.multiple if rows > self.multiple else rows)

    @property
    def field_row(self) -> int:
        """Units of ``field`` in the longest row."""
        return self.row_size if self.field == "dataset.max_tokens" else 1

    def in_units(self, amount: float) -> float:
        """``amount`` of ``field`` in the units of the data: seconds, images, tokens."""
        rows = amount / self.field_row
        if self.kind == AUDIO:
            return rows * self.row_size / self.cfg.task.sample_rate
        return rows * self.row_size if self.kind == TEXT else rows

    def describe(self, amount: float) -> str:
        """``amount`` of ``field`` for people."""
        units, rows = self.in_units(amount), amount / self.field_row
        text = f"{units:,.1f}".removesuffix(".0") + f" {UNITS[self.kind]}"
        if self.kind == AUDIO:
            return text + f" ({rows:,.4g} crops of {self.row_size / self.cfg.task.sample_rate:g} s)"
        return text + (f" ({rows:,.4g} blocks of {self.row_size:,})" if self.kind == TEXT else "")


def find(name: str, folders: Sequence[Path] = ()) -> Path:
    """The YAML file of a recipe, by its path or by its name in ``examples``.

    Raises:
        UserError: there is none, with names that are like it.
    """
    given = Path(name)
    if given.is_file():
        return given
    roots = [*folders, Path("examples"), Path(__file__).parents[2] / "examples"]
    files = [path for root in roots if root.is_dir() for path in sorted(root.glob("*/*.yaml"))]
    found = [path for path in files if path.stem == given.name.removesuffix(".yaml")]
    if found:
        return found[0]
    known = sorted({path.stem for path in files})
    near = [stem for stem in known if given.name.split("_")[0] in stem] or known
    raise UserError(
        f"no recipe {name}; give a YAML file, or a name from examples/"
        + (f": {', '.join(near[:12])}" if near else " (here is no such folder, so give --config-dir)")
    )


def compose(path: Path, overrides: Sequence[str] = ()) -> Any:
    """The configuration as ``fairseq-hydra-train`` makes it, with every default and without references."""
    import warnings

    from fairseq.dataclass.initialize import add_defaults, hydra_init
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    from d2v_plugin.rebuild import quiet_fairseq
    from d2v_plugin.register import register_plugin

    with quiet_fairseq():
        register_plugin()
    hydra_init(path.stem)
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with initialize_config_dir(str(path.parent.resolve()), version_base="1.1"):
                cfg = hydra_compose(path.stem, overrides=list(overrides))
        with open_dict(cfg):
            cfg.pop("hydra", None)
            for group, field in (("task", "data"), ("model", "w2v_path"), ("model", "model_path")):
                if cfg.get(group) is not None and OmegaConf.is_missing(cfg[group], field):
                    cfg[group][field] = "-"
        add_defaults(cfg)
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:300]}; correct the recipe or the override") from error


def read(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe's batch.

    Raises:
        UserError: it has no task that is known here, or no batch.
    """
    cfg = compose(path, overrides)
    task, model = str(cfg.task._name), str(cfg.model._name)
    if "sentence" in task:
        raise UserError(
            f"{path} fine-tunes on sentences of any length, {cfg.dataset.batch_size} an update on one GPU; there is "
            "nothing to plan, `d2v glue run` trains them"
        )
    kind = IMAGE if "image" in task else TEXT if "masked_lm" in task else AUDIO
    if kind == AUDIO and "audio" not in task:
        raise UserError(f"{path}: task {task} has no batch that can be planned; plan one modality's recipe")
    max_tokens, batch_size = cfg.dataset.max_tokens, cfg.dataset.batch_size
    if max_tokens is None and batch_size is None:
        raise UserError(f"{path} has neither dataset.max_tokens nor dataset.batch_size; set one of them")
    by_rows = batch_size is not None
    row_size = {AUDIO: _crop, IMAGE: lambda cfg: 1, TEXT: _block}[kind](cfg)
    return Recipe(
        name=path.stem,
        path=path,
        cfg=cfg,
        kind=kind,
        field="dataset.batch_size" if by_rows else "dataset.max_tokens",
        micro=int(batch_size if by_rows else max_tokens),
        gpus=int(cfg.distributed_training.distributed_world_size),
        update_freq=int(cfg.optimization.update_freq[0]),
        rates=_rates(cfg),
        updates=int(cfg.optimization.max_update),
        row_size=row_size,
        pretrains=model in ("data2vec_audio", "data2vec_multi", "data2vec_text", "data2vec_vision", "mae"),
    )


def _rates(cfg: Any) -> dict[str, float]:
    """Groups of a composite optimizer have rates of their own, and then that of ``optimization`` does nothing."""
    groups = cfg.optimizer.get("groups") or {}
    own = {f"optimizer.groups.{name}.lr_float": group.get("lr_float") for name, group in groups.items()}
    return {key: float(rate) for key, rate in own.items() if rate is not None} or {
        "optimization.lr": float(cfg.optimization.lr[0])
    }


def _crop(cfg: Any) -> int:
    """Samples of the longest crop; fine-tuning takes recordings whole."""
    longest = int(LONGEST_SECONDS * cfg.task.sample_rate)
    return int(cfg.task.get("max_sample_size") or min(cfg.dataset.max_tokens or longest, longest))


def _block(cfg: Any) -> int:
    return int(cfg.task.get("tokens_per_sample") or cfg.dataset.max_tokens)
