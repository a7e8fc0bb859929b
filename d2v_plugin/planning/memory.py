"""Bytes that a training step of a recipe holds at once: what is fixed, and what grows with the batch.

Fixed, with fairseq's mixed precision (``common.fp16`` or ``bf16``): weights and gradients in half precision; fp32
copies of both, which the optimiser works on; two fp32 moments; the teacher's fp32 averages and, where it runs in half
precision, the copy that runs. Without mixed precision: weights, gradients and moments in fp32. Several processes hold
one more copy of the gradients, the buffers they are summed in.

What grows is measured, not estimated: ``shapes_only`` runs the forward and the backward pass of the real model for two
batch sizes, and a line through the two peaks gives every other. Custom kernels are not used there, so where a GPU
fuses an operation the real peak lies below.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from d2v_plugin.errors import UserError
from d2v_plugin.planning.recipe import AUDIO, IMAGE, TEXT, Recipe
from d2v_plugin.planning.shapes_only import ShapesOnly, fused_attention

GB = 10**9
# of RoBERTa, with which the papers' text models were trained; the mask is one more
VOCABULARY = 50_265
PAD = 1
# rows at which the step is run; far enough apart for constants to be told from what grows
ROWS = (2, 4)
# what a card's memory also has to hold: the CUDA context and libraries, and gaps of the allocator
CONTEXT_BYTES = 1.0 * GB
USABLE = 0.92


@dataclass(frozen=True)
class Memory:
    """Bytes. ``fixed``: by name; ``base`` + ``per_row`` * rows: the step's peak beyond what is fixed.

    ``parameters``: trained ones; ``teacher``: averaged or copied by the teacher.
    """

    parameters: int
    teacher: int
    fixed: dict[str, int]
    base: float
    per_row: float

    def total(self, rows: float) -> float:
        """Bytes of tensors with ``rows`` rows of the longest kind in a batch."""
        return sum(self.fixed.values()) + max(self.base, 0.0) + self.per_row * rows

    def most_rows(self, card_bytes: float) -> float:
        """Rows that fit onto a card, possibly none (0 or below)."""
        free = card_bytes * USABLE - CONTEXT_BYTES - sum(self.fixed.values()) - max(self.base, 0.0)
        return free / self.per_row


def half(cfg: Any) -> torch.dtype | None:
    """The type of mixed precision, None without."""
    return torch.float16 if cfg.common.fp16 else torch.bfloat16 if cfg.common.bf16 else None


def fixed_bytes(parameters: int, teacher: int, teacher_runs_in_half: bool, mixed: bool, processes: int) -> dict:
    """Bytes of what a process holds from the first update on, by name.

    Args:
        parameters: that are trained.
        teacher: that the teacher has.
        mixed: fp16 or bf16 with fp32 copies, as fairseq's optimiser makes them.
        processes: more than one sum their gradients in buffers.
    """
    width = 2 if mixed else 4
    held = {"weights": width * parameters, "gradients": width * parameters}
    if mixed:
        held["fp32 weights and gradients"] = 8 * parameters
    held["moments of the optimizer"] = 8 * parameters
    if teacher:
        held["teacher"] = (4 + (2 if mixed and teacher_runs_in_half else 0)) * teacher
    if processes > 1:
        held["buffers that sum gradients"] = width * parameters
    return held


def count(recipe: Recipe, processes: int, vocabulary: int = VOCABULARY) -> Memory:
    """Count a pre-training recipe.

    Raises:
        UserError: a fine-tuning recipe, whose network stands in a checkpoint.
    """
    cfg, dtype = recipe.cfg, half(recipe.cfg)
    if not recipe.pretrains:
        raise UserError(
            f"{recipe.name} fine-tunes a checkpoint, whose network is not in the recipe, so its memory is not counted; "
            "say what fits with --micro"
        )
    mode = ShapesOnly()
    with torch.random.fork_rng(devices=[]), fused_attention(), mode:
        torch.manual_seed(0)
        model = _model(cfg, vocabulary)
        if dtype is not None:
            model = model.to(dtype)
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        peaks = [_peak(mode, model, recipe, rows, dtype, vocabulary) for rows in ROWS]
    slope = (peaks[1] - peaks[0]) / (ROWS[1] - ROWS[0])
    parameters = sum(parameter.numel() for parameter in trained)
    # data2vec_text has its teacher in the encoder
    teachers = [module.ema for module in model.modules() if getattr(module, "ema", None) is not None]
    teacher = sum(tensor.numel() for ema in teachers for tensor in ema.fp32.values())
    runs_in_half = any(ema.dtype != torch.float32 for ema in teachers)
    fixed = fixed_bytes(parameters, teacher, runs_in_half, dtype is not None, processes)
    return Memory(parameters, teacher, fixed, peaks[0] - ROWS[0] * slope, slope)


def _model(cfg: Any, vocabulary: int) -> nn.Module:
    """The model with the teacher it trains with; its weights are no numbers."""
    from fairseq import models

    from d2v_plugin.rebuild import quiet_fairseq
    from d2v_plugin.register import register_plugin

    words = SimpleNamespace(pad=lambda: PAD, bos=lambda: 0, eos=lambda: 2, unk=lambda: 3)
    dictionary = _Dictionary(vocabulary + 1, words)
    task = SimpleNamespace(source_dictionary=dictionary, dictionary=dictionary, cfg=cfg.task)
    register_plugin()
    with quiet_fairseq():
        model = models.build_model(_whole(cfg.model), task)
    for module in model.modules():
        if getattr(module, "watch", None) is not None:
            # it looks at the numbers, and there are none
            module.watch.interval = 2**62
    model.set_num_updates(1)
    return model


def _whole(cfg: Any) -> Any:
    """A model's configuration without layer drop: a step that drops no layer holds the most."""
    cfg = copy.deepcopy(cfg)
    text = (cfg.get("transformer") or {}).get("encoder")
    for settings in (cfg, text, *(cfg.get("modalities") or {}).values()):
        for name in ("layerdrop", "encoder_layerdrop", "prenet_layerdrop"):
            if OmegaConf.is_dict(settings) and name in settings:
                settings[name] = 0.0
    return cfg


class _Dictionary:
    """As much of fairseq's as models ask for."""

    def __init__(self, size: int, words: SimpleNamespace):
        self.size = size
        self.pad, self.bos, self.eos, self.unk = words.pad, words.bos, words.eos, words.unk

    def __len__(self) -> int:
        return self.size

    def index(self, symbol: str) -> int:
        return self.size - 1


def _peak(mode: ShapesOnly, model: nn.Module, recipe: Recipe, rows: int, dtype: Any, vocabulary: int) -> int:
    """Bytes that one forward and backward pass hold at most, beyond what was there before."""
    inputs = _inputs(model, recipe, rows, dtype or torch.float32, vocabulary)
    before = mode.restart()
    sizes = sum(value.untyped_storage().nbytes() for value in inputs.values() if torch.is_tensor(value))
    result = model(**inputs)
    loss = sum(value.float().sum() for value in result["losses"].values())
    del result
    loss.backward()
    return mode.peak - before + sizes


def _inputs(model: nn.Module, recipe: Recipe, rows: int, dtype: torch.dtype, vocabulary: int) -> dict:
    """A batch of the longest rows, under the names the model has for it."""
    from d2v_plugin.tasks._forward import named_arguments

    names = named_arguments(model)
    generator = torch.Generator().manual_seed(0)
    if recipe.kind == AUDIO:
        return {"source": torch.zeros(rows, recipe.row_size, dtype=dtype)}
    if recipe.kind == IMAGE:
        name = next(name for name in ("source", "imgs", "img") if name in names)
        channels = 3
        return {name: torch.zeros(rows, channels, recipe.side, recipe.side, dtype=dtype)}
    assert recipe.kind == TEXT
    tokens = torch.randint(4, vocabulary, (rows, recipe.row_size), generator=generator)
    if "source" in names:
        return {"source": tokens}
    # 1.0: the task hides tokens, and the targets are padding elsewhere
    hidden = torch.rand(tokens.shape, generator=generator) < recipe.cfg.task.mask_prob
    return {
        "src_tokens": tokens.masked_fill(hidden, vocabulary),
        "target_tokens": tokens.masked_fill(~hidden, PAD),
    }
