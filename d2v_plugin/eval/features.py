"""Layer outputs of a speech model, by utterance, as safetensors.

Layer n (1 to depth) is the output of the n-th transformer block, after its last residual (and, in a post-norm
model, its last layer norm); the norm that closes a pre-norm model is not applied. Layer 0 is the input of the first
block: convolutional features, projected, plus positions (and, in a post-norm model, normalised).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from d2v_plugin.errors import UserError
from d2v_plugin.eval.load import LoadedModel
from d2v_plugin.eval.utterances import Batch, Utterances

LAYER_NUMBERING = (
    "layer_0 is the input of the first transformer block (projected convolutional features plus "
    "positions); layer_n is the output of block n, counted from 1"
)


def check_layers(layers: Sequence[int] | None, depth: int) -> list[int]:
    """Sorted, each once; None means all. Raises ``UserError`` for a layer the model does not have."""
    if layers is None:
        return list(range(depth + 1))
    wrong = [layer for layer in layers if not 0 <= layer <= depth]
    if wrong or not layers:
        raise UserError(f"--layers takes numbers from 0 to {depth} for this model, got {' '.join(map(str, wrong))}")
    return sorted(set(layers))


@torch.inference_mode()
def layer_outputs(loaded: LoadedModel, batch: Batch, layers: Sequence[int]) -> tuple[dict[int, Tensor], list[int]]:
    """Run the encoder on a batch.

    Args:
        layers: as :func:`check_layers` returns them; blocks past the last are not computed.
    Returns:
        ``({layer: (B, T, C) fp32}, B frame counts)`` on the model's device; frames past the counts are padding.
    """
    mask = batch.padding_mask
    mask = mask if mask is None else mask.to(loaded.device)
    outputs, padding = loaded.network.layer_outputs(batch.source.to(loaded.device), mask, max(layers))
    counts = [outputs[0].size(1)] * len(batch.indices) if padding is None else (~padding).sum(1).tolist()
    return {layer: outputs[layer].float() for layer in layers}, counts


def iterate_features(
    loaded: LoadedModel, utterances: Utterances, layers: Sequence[int], max_seconds: float
) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """(position in the manifest, {layer: (T, C) fp32 on the CPU}), longest first."""
    for batch in utterances.batches(max_seconds):
        outputs, counts = layer_outputs(loaded, batch, layers)
        on_host = {layer: output.cpu() for layer, output in outputs.items()}
        for row, (index, count) in enumerate(zip(batch.indices, counts, strict=True)):
            yield index, {layer: output[row, :count] for layer, output in on_host.items()}


@dataclass
class FeatureWriter:
    """Safetensors in one file, or in shards with an index when there is more than one file should hold.

    Files are written under a temporary name and renamed at the end. Used as a context manager it removes them when the
    run stops before that, so that nothing stays that looks complete or takes up a disk that is full.

    Args:
        out: ``X.safetensors``; shards are ``X-00001-of-00003.safetensors`` and so on, with
            ``X.safetensors.index.json`` (``weight_map``: tensor -> file), the layout Hugging Face uses.
        metadata: strings that every file carries.
        max_bytes: a shard is closed when it has reached this size.
    """

    out: Path
    metadata: dict[str, str]
    max_bytes: int
    _tensors: dict[str, Tensor] = field(default_factory=dict)
    _paths: dict[str, str] = field(default_factory=dict)
    _size: int = 0
    _shards: list[tuple[Path, list[str]]] = field(default_factory=list)

    def add(self, identity: str, path: str, layers: dict[int, Tensor]) -> None:
        """Add one utterance: ``<id>/layer_<n>`` tensors of shape (T, C)."""
        for layer, output in layers.items():
            self._tensors[f"{identity}/layer_{layer}"] = output.contiguous()
            self._size += output.numel() * output.element_size()
        self._paths[identity] = path
        if self._size >= self.max_bytes:
            self._flush()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *reason: object) -> None:
        """Remove what has no name yet: everything, when the run did not come to its end."""
        for partial, _ in self._shards:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Raises ``UserError`` for a full disk, missing rights and the like."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cannot write {path}: {reason}; free some space or choose another --out") from error

    def _flush(self) -> None:
        partial = self.out.with_name(f"{self.out.stem}-{len(self._shards) + 1:05d}.partial")
        self._shards.append((partial, list(self._tensors)))
        with self._writing(partial):
            partial.touch()
            mode = partial.stat().st_mode
            save_file(self._tensors, partial, {**self.metadata, "paths": json.dumps(self._paths)})
            partial.chmod(mode)  # safetensors writes for the owner alone, whatever the umask says
        self._tensors, self._paths, self._size = {}, {}, 0

    def close(self) -> list[Path]:
        """Write what is left, give the files their names, and return these.

        Raises:
            UserError: they cannot be written.
        """
        if self._tensors:
            self._flush()
        count, files, index = len(self._shards), [], {}
        for number, (partial, keys) in enumerate(self._shards, 1):
            part = "" if count == 1 else f"-{number:05d}-of-{count:05d}"
            name = self.out.with_name(f"{self.out.stem}{part}.safetensors")
            with self._writing(name):
                os.replace(partial, name)
            files.append(name)
            index.update(dict.fromkeys(keys, name.name))
        if count > 1:
            listing = self.out.with_name(f"{self.out.name}.index.json")
            text = json.dumps({"metadata": self.metadata, "weight_map": index}, indent=1)
            with self._writing(listing):
                listing.write_text(text, encoding="utf-8")
            files.append(listing)
        return files


def feature_metadata(loaded: LoadedModel, checkpoint: Path, manifest: Path, layers: Sequence[int]) -> dict[str, str]:
    """What somebody who finds the file needs to know; safetensors metadata is text only."""
    return {
        "checkpoint": str(checkpoint),
        "manifest": str(manifest),
        "model": loaded.name,
        "layers": json.dumps(list(layers)),
        "layer_numbering": LAYER_NUMBERING,
        "frame_rate": f"{loaded.frame_rate:g}",
        "sample_rate": str(loaded.sample_rate),
        "first_frame_centre_samples": f"{(loaded.receptive_field - 1) / 2:g}",
        "normalize": json.dumps(loaded.normalize),
        "format": "pt",
    }
