"""A model out of a fairseq checkpoint, without the files and folders of the machine that trained it.

The file is read as data (``d2v_plugin.checkpoints``), so a checkpoint from a stranger cannot run code. The
configuration inside it builds the model, and the weights must fit it exactly.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.eval.networks import MultiNetwork, Network
from d2v_plugin.modalities import modality_name
from d2v_plugin.register import register_plugin

CTC = "ctc"
PRETRAINED = "pre-trained"
# model name in the checkpoint -> what it can be used for
KINDS = {"wav2vec_ctc": CTC, "data2vec_audio": PRETRAINED, "wav2vec2": PRETRAINED, "data2vec_multi": PRETRAINED}


@dataclass
class LoadedModel:
    """A model in evaluation mode, and how its input must look.

    ``symbols``: output letters in order for a CTC model, index 0 the blank; None for a pre-trained one.
    """

    model: nn.Module
    kind: str
    name: str
    sample_rate: int
    normalize: bool
    symbols: list[str] | None
    device: torch.device
    cfg: Any

    @property
    def encoder(self) -> nn.Module:
        """The network that was pre-trained: feature extractor and transformer."""
        return self.model.w2v_encoder.w2v_model if self.kind == CTC else self.model

    @property
    def network(self) -> Network:
        """Its blocks and their outputs."""
        return MultiNetwork(self.encoder) if hasattr(self.encoder, "modality_encoders") else Network(self.encoder)

    @property
    def depth(self) -> int:
        return len(self.network.blocks)

    def _convolutions(self) -> list[nn.Conv1d]:
        return [module for module in self.network.extractor.modules() if isinstance(module, nn.Conv1d)]

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(conv.stride[0] for conv in self._convolutions())

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees: the shortest recording that gives one."""
        field = 1
        for conv in reversed(self._convolutions()):
            field = (field - 1) * conv.stride[0] + conv.kernel_size[0]
        return field

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.stride

    @property
    def padding_changes_results(self) -> bool:
        """True when the extractor normalises over time (``extractor_mode: default``), padding included."""
        return any(isinstance(module, nn.GroupNorm) for module in self.network.extractor.modules())

    def describe(self) -> str:
        """One line for the screen."""
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        letters = f", {len(self.symbols)} symbols" if self.symbols else ""
        return (
            f"{self.name}: {self.depth} layers, {millions:.1f} M parameters{letters}, {self.sample_rate} Hz, "
            f"{self.frame_rate:g} frames/s, on {self.device}"
        )


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU when there is one, else the CPU; ``cpu``, ``cuda`` and ``cuda:N`` are taken by name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}, but torch sees no GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}, but torch sees {torch.cuda.device_count()} GPU; they count from cuda:0")
    return device


@contextlib.contextmanager
def _quiet_fairseq() -> Iterator[None]:
    """fairseq tells about optional packages when imported, and logs whole configurations when it builds a model."""
    logger = logging.getLogger("fairseq")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _configuration(state: dict, path: Path):
    """The training configuration as an OmegaConf node; checkpoints of before 2021 hold a Namespace."""
    from omegaconf import OmegaConf

    if state.get("cfg") is not None:
        return OmegaConf.create(state["cfg"])
    if state.get("args") is not None:
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf

        return convert_namespace_to_omegaconf(state["args"])
    raise UserError(f"{path} has no training configuration, so the model cannot be built; give the file fairseq wrote")


def _dictionary(state: dict, cfg, path: Path, given: Path | None, manifest: Path | None):
    """The output letters: from --dict, else the checkpoint's own, else beside the manifest, else where it trained."""
    from fairseq.data.dictionary import Dictionary

    own = (state.get("task_state") or {}).get("target_dictionary")
    name = f"dict.{cfg.task.get('labels') or 'ltr'}.txt"
    folders = [manifest.parent] if manifest else []
    folders += [Path(cfg.task.data)] if cfg.task.get("data") else []
    files = [given] if given else [folder / name for folder in folders]
    found = next((file for file in files if file.is_file()), None)
    if given is None and isinstance(own, Dictionary):
        dictionary, source = own, "the checkpoint"
    elif found is not None:
        try:
            dictionary, source = Dictionary.load(str(found)), str(found)
        except (ValueError, UnicodeError, RuntimeError) as error:
            raise UserError(f"cannot read the dictionary {found}: {' '.join(str(error).split())}") from error
    else:
        raise UserError(
            f"no dictionary for {path}: looked for {', '.join(map(str, files))}; give the file of training with --dict"
        )
    outputs = state["model"].get("w2v_encoder.proj.weight")
    if outputs is not None and outputs.size(0) != len(dictionary):
        raise UserError(
            f"the dictionary from {source} has {len(dictionary)} symbols, the model has {outputs.size(0)} "
            "outputs; give the file of training with --dict"
        )
    return dictionary


def _kind(cfg, path: Path, want: str | None) -> tuple[str, str]:
    name = str(cfg.model.get("_name") or cfg.model.get("arch"))
    kind = KINDS.get(name)
    if kind is None:
        raise UserError(f"{path} holds a {name!r} model; this command takes {', '.join(sorted(KINDS))}")
    if want == CTC and kind != CTC:
        raise UserError(
            f"{path} is a pre-training checkpoint ({name}) without output letters; fine-tune it with CTC "
            "first, or use `d2v features` or `d2v probe`"
        )
    return name, kind


def _check_modality(cfg, wanted: str, path: Path) -> None:
    """Raises ``UserError`` where a ``data2vec_multi`` file is known to be of another modality."""
    found = cfg.model.get("supported_modality")
    if found is not None and modality_name(found) != wanted:
        raise UserError(f"{path} was trained on {modality_name(found)}; this needs a model of {wanted}")


def load_multi(
    path: Path, modality: str, *, dictionary=None, untrained_seed: int | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Any]:
    """The network of a ``data2vec_multi`` checkpoint for one modality, for features.

    Args:
        modality: "IMAGE", "TEXT", "AUDIO" or a registered one.
        dictionary: fairseq ``Dictionary`` of training; TEXT needs it.
        untrained_seed: keep the random initial weights that this seed gives instead of the checkpoint's.
    Returns:
        ``(model, cfg)``: without teacher and decoders, in evaluation mode; and the configuration of training.
    Raises:
        UserError: one line on what is wrong and what to change.
    """
    state = read_checkpoint(path, keys=("model",))
    cfg = _configuration(state, path)
    name = str(cfg.model.get("_name"))
    if name != "data2vec_multi":
        raise UserError(f"{path} holds a {name!r} model; this takes data2vec_multi")
    _check_modality(cfg, modality, path)
    model = _built(cfg, PRETRAINED, SimpleNamespace(source_dictionary=dictionary), untrained_seed)
    if untrained_seed is None:
        _load_weights(model, state["model"], path)
    model.remove_pretraining_modules(modality)
    return model.eval().to(device), cfg


@_quiet_fairseq()
def _built(cfg, kind: str, task, seed: int | None) -> nn.Module:
    """The model with random weights; the caller's random numbers stay as they were.

    Args:
        task: stands in for the task and has all that the model asks of it: a dictionary.
    """
    from fairseq import models
    from omegaconf import open_dict

    register_plugin()
    with open_dict(cfg):
        if kind == CTC:
            # paths of the training machine: w2v_args below replaces the first, nothing reads the second
            cfg.model.w2v_path = "-"
            cfg.model.data = "-"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        return models.build_model(cfg.model, task, from_checkpoint=True)


def _load_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Strictly; the EMA teacher, which only training needs, is left out."""
    weights = {key: value for key, value in weights.items() if key != "_ema"}
    if getattr(model, "ema", None) is not None:
        model.ema = None
    try:
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, UserError) as error:  # torch's own, or what data2vec_audio makes of it
        reason = " ".join(str(error).split())
        raise UserError(
            f"the weights of {path} do not fit the model its configuration describes: {reason[:300]}"
        ) from error
    broken = next((key for key, value in model.named_parameters() if not bool(value.isfinite().all())), None)
    if broken is not None:
        raise UserError(
            f"the weights of {path} are NaN or infinite (first in {broken}), so it answers nothing; its training "
            "diverged, take an earlier checkpoint"
        )


@_quiet_fairseq()
def load_model(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    want: str | None = None,
    dictionary: Path | None = None,
    manifest: Path | None = None,
    untrained_seed: int | None = None,
) -> LoadedModel:
    """Build the model of a checkpoint and load its weights, in evaluation mode.

    Args:
        path: fairseq checkpoint of ``data2vec_audio``, ``data2vec_multi`` for speech, ``wav2vec2``, or ``wav2vec_ctc``
            on top of one of them.
        want: :data:`CTC` refuses checkpoints without output letters.
        dictionary: letters of a CTC model, when neither the checkpoint nor the manifest's folder has them.
        manifest: its folder may hold ``dict.ltr.txt``.
        untrained_seed: keep the random initial weights that this seed gives instead of the checkpoint's.
    Raises:
        UserError: one line on what is wrong and what to change.
    """
    state = read_checkpoint(path, keys=("model",))
    cfg = _configuration(state, path)
    name, kind = _kind(cfg, path, want)
    letters = _dictionary(state, cfg, path, dictionary, manifest) if kind == CTC else None
    if name == "data2vec_multi":
        _check_modality(cfg, "AUDIO", path)
    if kind == CTC and cfg.model.get("w2v_args") is None:
        raise UserError(
            f"{path} does not hold the configuration of its pre-trained model (w2v_args); fine-tune with "
            "fairseq 0.12, which stores it"
        )
    model = _built(cfg, kind, SimpleNamespace(target_dictionary=letters), untrained_seed)
    if untrained_seed is None:
        _load_weights(model, state["model"], path)
    if kind == PRETRAINED:
        model.remove_pretraining_modules()
    model.eval()
    # fairseq keeps the sample rate and the normalisation with the task
    return LoadedModel(
        model.to(device),
        kind,
        name,
        int(cfg.task.get("sample_rate", 16000)),
        bool(cfg.task.get("normalize", False)),
        list(letters.symbols) if letters else None,
        torch.device(device),
        cfg,
    )
