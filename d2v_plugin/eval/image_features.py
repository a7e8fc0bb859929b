"""One vector for each image: the mean over patches of a layer's output of a data2vec model, 1.0 or 2.0.

Layers are numbered as for speech: layer n (1 to depth) is the output of the n-th transformer block, in 2.0 counting
the modality's own before the shared ones; layer 0 is the input of the first. Extra tokens (CLS) do not count in the
mean.
Images are read as in validation: the middle, or the whole with ``no_transform``, and nothing random.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2v_plugin.data.images.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, BatchAugment
from d2v_plugin.data.images.geometry import CropRule
from d2v_plugin.data.images.index import ImageIndex
from d2v_plugin.data.images.io import MAX_PIXELS, ImageError, decode
from d2v_plugin.data.images.store import ImageStore
from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)

MODALITY, VISION = "IMAGE", "data2vec_vision"
AHEAD = 2  # batches that are being read while one is worked on


@dataclass(frozen=True)
class ImageInput:
    """How a model was trained to see images; the fields are those of the tasks that pre-train on them."""

    input_size: int = 224
    no_transform: bool = False
    normalization_mean: Sequence[float] = IMAGENET_MEAN
    normalization_std: Sequence[float] = IMAGENET_STD
    exif_orientation: bool = False
    max_image_pixels: int = MAX_PIXELS

    @classmethod
    def of(cls, task_cfg) -> ImageInput:
        """From the ``task`` part of a checkpoint's configuration; what it does not name keeps its default."""
        known = {name: task_cfg[name] for name in cls.__dataclass_fields__ if name in task_cfg}
        for name in ("normalization_mean", "normalization_std"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)


@dataclass(frozen=True)
class ImageFeatures:
    """``layers[n]`` (N, C) fp32 on the CPU, with positions (N,) in the index, and labels (N,) where it has them."""

    layers: dict[int, Tensor]
    positions: Tensor
    labels: Tensor | None


def load_image_model(
    path: Path, *, untrained_seed: int | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Any]:
    """``load_multi`` for images: the network of a ``data2vec_multi`` or ``data2vec_vision`` checkpoint, and its cfg."""
    from d2v_plugin.eval.load import load_multi

    return load_multi(path, MODALITY, also=(VISION,), untrained_seed=untrained_seed, device=device)


def read_images(
    index: ImageIndex, image_input: ImageInput, batch_size: int = 64, threads: int | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches ``(positions, (B, 3, S, S) uint8)``, in order; images that cannot be read are left out and named.

    Pillow decodes without holding Python's lock, so threads do.
    """
    store = ImageStore(index)
    choose = CropRule(image_input.input_size, plain=image_input.no_transform, training=False).chooser()

    def read(position: int) -> np.ndarray | None:
        try:
            return decode(
                store.read(position),
                index.entry(position),
                choose,
                orient=image_input.exif_orientation,
                max_pixels=image_input.max_image_pixels,
            )
        except ImageError as error:
            logger.warning("skipped %s", error)
            return None

    parts = iter([range(n, min(n + batch_size, len(index))) for n in range(0, len(index), batch_size)])
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        waiting = [(part, pool.map(read, part)) for part in itertools.islice(parts, AHEAD)]
        while waiting:
            part, results = waiting.pop(0)
            found = [(position, image) for position, image in zip(part, results, strict=True) if image is not None]
            waiting += [(part, pool.map(read, part)) for part in itertools.islice(parts, 1)]
            if found:
                pixels = np.stack([image for _, image in found])
                yield [position for position, _ in found], torch.from_numpy(pixels).permute(0, 3, 1, 2)


def depth(model: nn.Module) -> int:
    """Transformer blocks that an image goes through."""
    return len(_network(model).blocks)


@torch.no_grad()
def image_features(
    model: nn.Module,
    index: ImageIndex,
    image_input: ImageInput,
    layers: Sequence[int] | None = None,
    batch_size: int = 64,
) -> ImageFeatures:
    """Features of every image that can be read.

    Args:
        model: as ``load_image_model`` gives it; put into evaluation mode. Its device and precision are used.
        layers: which; None for the last.
    Raises:
        UserError: no encoder for images, a layer that it does not have, or no image that can be read.
    """
    network = _network(model)
    blocks = network.blocks
    wanted = sorted({len(blocks)} if layers is None else set(layers))
    wrong = [layer for layer in wanted if not 0 <= layer <= len(blocks)]
    if wrong:
        raise UserError(f"this model has layers 0 to {len(blocks)}, got {', '.join(map(str, wrong))}")
    model.eval()
    weight = next(model.parameters())
    normalise = BatchAugment(AugmentConfig(image_input.normalization_mean, image_input.normalization_std)).plain
    pooled, positions = {layer: [] for layer in wanted}, []
    for places, images in read_images(index, image_input, batch_size):
        source = normalise(images.to(weight.device), weight.dtype)
        for layer, output in _layer_outputs(network, source, wanted).items():
            pooled[layer].append(output.float().mean(1).cpu())
        positions += places
    if not positions:
        raise UserError(f"{index.source}: none of its {len(index)} images could be read; the log names each of them")
    labels = None if index.labels is None else torch.from_numpy(index.labels[positions]).long()
    return ImageFeatures({n: torch.cat(parts) for n, parts in pooled.items()}, torch.tensor(positions), labels)


def pixels(index: ImageIndex, image_input: ImageInput) -> ImageFeatures:
    """The images themselves as features, ``layers[0]`` (N, 3 * S * S) in 0..1: what a probe has to beat."""
    batches = list(read_images(index, image_input))
    if not batches:
        raise UserError(f"{index.source}: none of its {len(index)} images could be read; the log names each of them")
    positions = [position for places, _ in batches for position in places]
    flat = torch.cat([images.flatten(1) for _, images in batches]).float() / 255
    labels = None if index.labels is None else torch.from_numpy(index.labels[positions]).long()
    return ImageFeatures({0: flat}, torch.tensor(positions), labels)


@dataclass(frozen=True)
class _Network:
    """``blocks`` in order, how many ``extra`` tokens stand before the patches, and a call for ``features``."""

    blocks: list[nn.Module]
    extra: int
    features: Callable[[Tensor], Any]


def _network(model: nn.Module) -> _Network:
    encoders = getattr(model, "modality_encoders", {})
    if MODALITY in encoders:
        encoder = encoders[MODALITY]
        return _Network(
            [*encoder.context_encoder.blocks, *model.blocks],
            encoder.modality_cfg.num_extra_tokens,
            partial(model, mode=MODALITY, mask=False, features_only=True),
        )
    if getattr(model, "model_name", None) == VISION:
        return _Network(list(model.encoder.blocks), 1, partial(model, mask=False))
    raise UserError(f"this model has no encoder for images, only {', '.join(encoders) or 'others'}")


def _layer_outputs(network: _Network, source: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: (B, patches, C)} without extra tokens."""
    found: dict[int, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            if layer == 0:
                hook = network.blocks[0].register_forward_pre_hook(lambda module, args: found.update({0: args[0]}))
            else:
                hook = network.blocks[layer - 1].register_forward_hook(
                    lambda module, args, out, layer=layer: found.update({layer: out[0]})
                )
            hooks.callback(hook.remove)
        network.features(source)
    return {layer: output[:, network.extra :] for layer, output in found.items()}
