"""Decode a manifest with a CTC model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from d2v_plugin.eval.ctc import greedy_ctc, symbols_to_text
from d2v_plugin.eval.load import LoadedModel
from d2v_plugin.eval.utterances import Batch, Utterances


@dataclass(frozen=True)
class Hypothesis:
    """``index``: position in the manifest; ``seconds``: length of the recording."""

    index: int
    text: str
    seconds: float


@torch.inference_mode()
def frame_scores(loaded: LoadedModel, batch: Batch) -> tuple[torch.Tensor, list[int]]:
    """(B, T, V) natural-log probabilities, fp32, on the model's device, and B frame counts."""
    source = batch.source.to(loaded.device)
    # fairseq's encoder wants a mask even where nothing is padded
    mask = torch.zeros(source.shape, dtype=torch.bool) if batch.padding_mask is None else batch.padding_mask
    output = loaded.model(source=source, padding_mask=mask.to(loaded.device))
    frames, padding = output["encoder_out"].size(0), output["padding_mask"]
    counts = [frames] * len(batch.indices) if padding is None else (~padding).sum(1).tolist()
    return loaded.model.get_normalized_probs(output, log_probs=True).transpose(0, 1), counts


def decode(
    loaded: LoadedModel, utterances: Utterances, max_seconds: float, beam: Callable[[np.ndarray], str] | None = None
) -> Iterator[Hypothesis]:
    """Hypotheses in batches of similar length, longest first.

    Args:
        loaded: a CTC model.
        beam: turns (T, V) log-probabilities into text; None decodes greedily.
    """
    for batch in utterances.batches(max_seconds):
        scores, counts = frame_scores(loaded, batch)
        if beam is None:
            texts = [symbols_to_text(loaded.symbols[i] for i in row) for row in greedy_ctc(scores, counts)]
        else:
            on_host = scores.cpu().numpy()
            texts = [beam(row[:count]) for row, count in zip(on_host, counts, strict=True)]
        for index, text, length in zip(batch.indices, texts, batch.lengths, strict=True):
            yield Hypothesis(index, text, length / utterances.sample_rate)
