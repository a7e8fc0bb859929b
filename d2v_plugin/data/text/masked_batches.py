"""Blocks of masked tokens as batches for models that learn from ``<mask>``: data2vec 1.0, RoBERTa."""

import logging

import numpy as np
import torch
from fairseq.data import FairseqDataset

from d2v_plugin.data.text.batches import TokenBatches
from d2v_plugin.data.text.token_masks import TokenMasks

logger = logging.getLogger(__name__)


class MaskedBatches(TokenBatches):
    """fairseq's batches of ``masked_lm``, in its order: net_input with src_tokens, src_lengths, target_tokens, src_id,
    and target, nsentences, ntokens.

    Differences: ``target_tokens`` is the whole text, where fairseq has padding wherever nothing is masked (its issue
    4881), blocks that hold nothing but specials are left out, and ``<mask>`` in a text is taken for ``<unk>``.
    Masks are functions of seed, epoch and block alone. Those of fairseq's own ``masked_lm`` are not: its data workers
    never hear of a new epoch, and without workers the last few blocks come back with the masks of the epoch before.

    Args:
        blocks, pad, seed: see ``TokenBatches``.
        masks: None hands over the text as it is.
        mask, unknown: the symbols ``<mask>`` and ``<unk>``.
        text, index: add ``target_tokens`` and ``src_id``.

    ``source_lengths`` and ``rows``: add ``net_input["source_lengths"]``, Python ints, and ``masked_rows``, (M,) int64
    flat indices ``b * T + t`` of ``<mask>``, so that the model need read neither from its device.
    """

    def __init__(
        self,
        blocks: FairseqDataset,
        pad: int,
        seed: int,
        masks: TokenMasks | None,
        *,
        mask: int,
        unknown: int,
        text: bool = False,
        index: bool = True,
    ):
        super().__init__(blocks, pad, seed)
        self.masks, self.mask, self.unknown = masks, mask, unknown
        self.text, self.index, self.rows = text, index, False
        self._warned = False

    def __getitem__(self, index: int) -> dict:
        text = self._clean(self._block(index).numpy())
        if self.masks is None:
            masked, chosen = text, np.ones(len(text), bool)
        else:
            masked, chosen = self.masks(text, self.epoch, index)
        return {"id": index, "source": masked, "text": text, "target": np.where(chosen, text, self.pad)}

    def _clean(self, text: np.ndarray) -> np.ndarray:
        found = text == self.mask
        if not found.any():
            return text
        if not self._warned:
            logger.warning("the text itself has <mask> in it, which is taken for <unk>")
            self._warned = True
        return np.where(found, self.unknown, text)

    def collater(self, samples: list[dict]) -> dict:
        if not samples:
            return {}
        lengths = [len(sample["source"]) for sample in samples]
        source, target = self._padded(samples, "source"), self._padded(samples, "target")
        ids = torch.tensor([sample["id"] for sample in samples])
        net_input = {"src_tokens": source, "src_lengths": torch.tensor(lengths)}
        if self.text:
            net_input["target_tokens"] = self._padded(samples, "text")
        if self.index:
            net_input["src_id"] = ids
        if self.source_lengths:
            net_input["source_lengths"] = lengths
        if self.rows:
            net_input["masked_rows"] = source.eq(self.mask).flatten().nonzero().squeeze(1)
        batch = {"id": ids, "net_input": net_input, "target": target}
        return batch | {"nsentences": len(samples), "ntokens": sum(lengths)}

    def _padded(self, samples: list[dict], key: str) -> torch.Tensor:
        """(B, T) int64, filled up on the right."""
        width = max(len(sample[key]) for sample in samples)
        rows = torch.full((len(samples), width), self.pad)
        for row, sample in zip(rows, samples, strict=True):
            row[: len(sample[key])] = torch.from_numpy(sample[key])
        return rows
