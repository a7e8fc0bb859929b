"""What the layers of a text model make of passages and words: the mean over their tokens.

Layer n (1 to depth) is the output of block n, counted through the prenet and the shared blocks; layer 0 is the input of
the first: embedded tokens with their positions. A token's vector depends on the whole passage; its mean is taken over
the part asked for, and neither ``<s>``, ``</s>`` nor padding is part of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.data.text.pieces import (
    DICTIONARY_NAME,
    EOS,
    MODEL_NAME,
    SPECIALS,
    UNKNOWN,
    fairseq_ids,
    load_pieces,
    read_symbols,
)
from d2v_plugin.data.text.token_masks import TokenMasks
from d2v_plugin.errors import UserError
from d2v_plugin.eval.load import load_multi

MODALITY = "TEXT"
BOS, PAD = SPECIALS.index("<s>"), SPECIALS.index("<pad>")
MASK = "<mask>"
MAX_TOKENS = 8192


@dataclass(frozen=True)
class Passage:
    """A text as words, of which ``words[start:end]`` are meant; ``end`` None is behind the last."""

    words: tuple[str, ...]
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Tokens:
    """``ids``: (T,) int64, ``<s>`` and ``</s>`` around them; the part meant is ``ids[start:end]``."""

    ids: np.ndarray
    start: int
    end: int


class Tokenizer:
    """The sentencepiece model and the dictionary of a folder of binarised text.

    Raises:
        UserError: one of the two is missing or broken.
    """

    def __init__(self, data: Path):
        self.data = Path(data)
        self.processor = load_pieces(self.data / MODEL_NAME)
        self.symbols = read_symbols(self.data / DICTIONARY_NAME)
        self.ids = fairseq_ids(self.processor, self.symbols)

    def __call__(self, passage: Passage, longest: int) -> Tokens | None:
        """A passage as at most ``longest`` tokens, the rest cut off behind; None where nothing of the part is left."""
        # pieces do not reach over blanks, so words can be taken one by one
        pieces = [self.ids[np.array(found, np.int64)] for found in self.processor.encode(list(passage.words))]
        edges = np.cumsum([1, *map(len, pieces)]).clip(max=longest - 1)
        start, end = edges[passage.start], edges[len(pieces) if passage.end is None else passage.end]
        if start >= end:
            return None
        ids = np.concatenate(([BOS], *pieces))[: longest - 1]
        return Tokens(np.append(ids, EOS), int(start), int(end))


@dataclass
class TextModel:
    """The network of a checkpoint in evaluation mode, the tokens it was trained on, and its configuration."""

    model: nn.Module
    tokenizer: Tokenizer
    device: torch.device
    cfg: Any
    name = "data2vec_multi"

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self._encoder.context_encoder.blocks, *self.model.blocks]

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def longest(self) -> int:
        """Tokens that have positions."""
        return int(self._encoder.modality_cfg.max_source_positions)

    @property
    def width(self) -> int:
        """C."""
        return int(self.model.cfg.embed_dim)

    @property
    def extra_tokens(self) -> int:
        """Positions before those of the tokens."""
        return int(self._encoder.modality_cfg.num_extra_tokens)

    def run(self, tokens: Tensor, padding_mask: Tensor | None) -> None:
        """Let (B, T) tokens pass through the blocks; ``padding_mask``: (B, T) bool, or None for no padding."""
        self.model.extract_features(tokens, mode=MODALITY, padding_mask=padding_mask)

    @property
    def masker(self) -> Any:
        """What draws its masks, for ``d2v_plugin.eval.mask_pictures.draw_masks``."""
        return self._encoder

    def describe(self) -> str:
        """One line for the screen."""
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        symbols = f"{len(self.tokenizer.symbols)} symbols, up to {self.longest} tokens"
        return f"{self.name}: {self.depth} layers, {millions:.1f} M parameters, {symbols}, on {self.device}"

    @property
    def _encoder(self) -> nn.Module:
        return self.model.modality_encoders[MODALITY]


class SentenceModel(TextModel):
    """The same of 1.0."""

    name = "data2vec_text"

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.encoder.sentence_encoder.layers)

    @property
    def longest(self) -> int:
        return int(self.model.cfg.transformer.max_source_positions)

    @property
    def width(self) -> int:
        return int(self.model.cfg.transformer.encoder.embed_dim)

    @property
    def extra_tokens(self) -> int:
        return 0

    def run(self, tokens: Tensor, padding_mask: Tensor | None) -> None:
        self.model(tokens, features_only=True)

    @property
    def masker(self) -> TokenMasks:
        task = self.cfg.task
        length, stdev = task.get("mask_multiple_length", 1), task.get("mask_stdev", 0.0)
        return TokenMasks(self.model.encoder.mask_idx, task.get("mask_prob", 0.15), length, stdev)


def load_text_model(
    checkpoint: Path, data: Path, *, device: torch.device | str = "cpu", untrained_seed: int | None = None
) -> TextModel:
    """The network of a checkpoint, of 1.0 or 2.0, with the tokens of a folder that ``d2v text build`` wrote.

    Args:
        untrained_seed: keep the random initial weights that this seed gives instead of the checkpoint's.
    Raises:
        UserError: one line, also where the checkpoint was trained on tokens of another dictionary.
    """
    tokenizer = Tokenizer(data)
    trained = (read_checkpoint(checkpoint).get("task_state") or {}).get("symbols")
    here = [*tokenizer.symbols, *([] if MASK in tokenizer.symbols else [MASK])]  # the task adds it
    if trained is not None and list(trained) != here:
        raise UserError(
            f"{checkpoint} was trained with another dictionary than {tokenizer.data / DICTIONARY_NAME}; give the "
            "folder of text it was trained on"
        )
    model, cfg = load_multi(
        checkpoint,
        MODALITY,
        also=(SentenceModel.name,),
        dictionary=_Vocabulary(here),
        untrained_seed=untrained_seed,
        device=device,
    )
    kind = SentenceModel if cfg.model._name == SentenceModel.name else TextModel
    return kind(model, tokenizer, torch.device(device), cfg)


@dataclass(frozen=True)
class _Vocabulary:
    """All that a model of text asks of a fairseq dictionary."""

    symbols: Sequence[str]

    def __len__(self) -> int:
        return len(self.symbols)

    def pad(self) -> int:
        return PAD

    def unk(self) -> int:
        return UNKNOWN

    def index(self, symbol: str) -> int:
        return self.symbols.index(symbol)


@torch.inference_mode()
def layer_means(
    loaded: TextModel, passages: Sequence[Tokens], layers: Sequence[int], max_tokens: int = MAX_TOKENS
) -> dict[int, np.ndarray]:
    """The mean vector of each passage's part, in the order given.

    Args:
        max_tokens: of a batch, padding counted; one passage may be longer.
    Returns:
        ``{layer: (N, C) float32}``.
    """
    found: dict[int, list] = {layer: [None] * len(passages) for layer in layers}
    for rows in _batches([len(passage.ids) for passage in passages], max_tokens):
        batch = [passages[row] for row in rows]
        width = max(len(tokens.ids) for tokens in batch)
        source = torch.full((len(batch), width), PAD)
        part = torch.zeros(len(batch), width)
        for row, tokens in enumerate(batch):
            source[row, : len(tokens.ids)] = torch.from_numpy(tokens.ids)
            part[row, tokens.start : tokens.end] = 1 / (tokens.end - tokens.start)
        source, part = source.to(loaded.device), part.to(loaded.device)
        outputs = _layer_outputs(loaded, source, max(layers))
        for layer in layers:
            means = torch.einsum("btc,bt->bc", outputs[layer].float(), part).cpu().numpy()
            for row, mean in zip(rows, means, strict=True):
                found[layer][row] = mean
    nothing = np.zeros((0, loaded.width), np.float32)
    return {layer: np.stack(means) if means else nothing for layer, means in found.items()}


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Positions of passages, similar lengths together."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _layer_outputs(loaded: TextModel, source: Tensor, last: int) -> list[Tensor]:
    """Layers 0 to ``last`` for (B, T) tokens, each (B, T, C)."""
    kept: list[Tensor] = []
    padding = source == PAD
    with contextlib.ExitStack() as hooks:

        def keep(register, pick):
            handle = register(lambda module, args, *out: kept.append(pick(args, *out)))
            hooks.callback(handle.remove)

        keep(loaded.blocks[0].register_forward_pre_hook, lambda args: args[0])
        for block in loaded.blocks[:last]:
            keep(block.register_forward_hook, lambda args, out: out[0])
        mask = padding if bool(padding.any()) else None
        loaded.run(source, mask)
    return [layer[:, loaded.extra_tokens :] for layer in kept]
