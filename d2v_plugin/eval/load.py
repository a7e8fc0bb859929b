"""A model out of a fairseq checkpoint, without the files and folders of the machine that trained it.

The file is read as data (``d2v_plugin.checkpoints``), so a checkpoint from a stranger cannot run code. The
configuration inside it builds the model, and the weights must fit it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.eval.networks import MultiNetwork, Network
from d2v_plugin.modules.conv_blocks import ConvNormGelu
from d2v_plugin.rebuild import built, check_modality, configuration, load_weights, quiet_fairseq

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
        """True when the extractor normalises over time (``extractor_mode: default``), padding included, or when several
        positional convolutions, or those of 2.0, carry what they make of padding into the last frames."""
        seeing = (nn.GroupNorm, ConvNormGelu)
        return any(isinstance(module, seeing) for module in self.encoder.modules())

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


def load_multi(
    path: Path,
    modality: str,
    *,
    also: Sequence[str] = (),
    dictionary=None,
    untrained_seed: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Any]:
    """The network of a ``data2vec_multi`` checkpoint for one modality, for features.

    Args:
        modality: "IMAGE", "TEXT", "AUDIO" or a registered one.
        also: names of models of 1.0 that serve that modality.
        dictionary: fairseq ``Dictionary`` of training; TEXT needs it.
        untrained_seed: keep the random initial weights that this seed gives instead of the checkpoint's.
    Returns:
        ``(model, cfg)``: without teacher and decoders, in evaluation mode; and the configuration of training.
    Raises:
        UserError: one line on what is wrong and what to change.
    """
    state = read_checkpoint(path, keys=("model",))
    cfg = configuration(state, path)
    name = str(cfg.model.get("_name"))
    multi = name == "data2vec_multi"
    if not multi and name not in also:
        raise UserError(f"{path} holds a {name!r} model; this takes {' or '.join(['data2vec_multi', *also])}")
    if multi:
        check_modality(cfg, modality, path)
    model = built(cfg, SimpleNamespace(source_dictionary=dictionary), untrained_seed)
    if untrained_seed is None:
        load_weights(model, state["model"], path)
    model.remove_pretraining_modules(*([modality] if multi else []))
    return model.eval().to(device), cfg


@quiet_fairseq()
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
    from omegaconf import open_dict

    state = read_checkpoint(path, keys=("model",))
    cfg = configuration(state, path)
    name, kind = _kind(cfg, path, want)
    letters = _dictionary(state, cfg, path, dictionary, manifest) if kind == CTC else None
    if name == "data2vec_multi":
        check_modality(cfg, "AUDIO", path)
    if kind == CTC and cfg.model.get("w2v_args") is None:
        raise UserError(
            f"{path} does not hold the configuration of its pre-trained model (w2v_args); fine-tune with "
            "fairseq 0.12, which stores it"
        )
    if kind == CTC:
        # paths of the training machine: w2v_args replaces the first, nothing reads the second
        with open_dict(cfg):
            cfg.model.w2v_path = cfg.model.data = "-"
    model = built(cfg, SimpleNamespace(target_dictionary=letters), untrained_seed)
    if untrained_seed is None:
        load_weights(model, state["model"], path)
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
