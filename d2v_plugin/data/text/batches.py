"""Blocks of tokens as batches for ``data2vec_multi``."""

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils

# <s> and </s>: an end of document on its own
NOTHING = 2


class TokenBatches(FairseqDataset):
    """fairseq's ``d2v2_multi`` batches, in its order: net_input with source, id and padding_mask, nsentences, ntokens.

    Two differences: a batch without padding carries no ``padding_mask``, so that the model need neither read nor apply
    one, and blocks that hold nothing but specials are left out.

    Args:
        blocks: dataset of (T,) token tensors with ``sizes``; a block's index is its ``id``.
        pad: token that fills shorter blocks of a batch, on the right.
        seed: of the order among blocks of one length.
        source_lengths: add ``net_input["source_lengths"]``, Python ints, to a batch with padding.
    """

    def __init__(self, blocks: FairseqDataset, pad: int, seed: int, source_lengths: bool = False):
        super().__init__()
        self.blocks, self.pad, self.source_lengths = blocks, pad, source_lengths
        self.sizes = np.asarray(blocks.sizes)  # (N,) tokens
        with data_utils.numpy_seed(seed):
            self._shuffle = np.random.permutation(len(blocks))
        # Shared, because data workers outlive an epoch and see nothing else that the main process sets later.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._epoch_of_blocks = 0

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict:
        return {"id": index, "source": self._block(index)}

    @property
    def epoch(self) -> int:
        return int(self._epoch[0])

    def _block(self, index: int) -> torch.Tensor:
        """(T,) tokens of this epoch: crops move."""
        if self._epoch_of_blocks != self.epoch:
            self._epoch_of_blocks = self.epoch
            self.blocks.set_epoch(self.epoch)
        return self.blocks[index]

    def ordered_indices(self) -> np.ndarray:
        """(N',) blocks with text by length, shuffled within a length."""
        order = np.lexsort([self._shuffle, self.sizes])
        return order[self.sizes[order] > NOTHING]

    def num_tokens(self, index: int) -> int:
        return int(self.sizes[index])

    size = num_tokens

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.sizes[indices].astype(np.int64)

    def collater(self, samples: list[dict]) -> dict:
        if not samples:
            return {}
        lengths = [len(sample["source"]) for sample in samples]
        source = samples[0]["source"].new_full((len(samples), max(lengths)), self.pad)  # (B, T)
        for row, sample in zip(source, samples, strict=True):
            row[: len(sample["source"])] = sample["source"]
        ids = torch.tensor([sample["id"] for sample in samples])
        net_input = {"source": source, "id": ids}
        if min(lengths) < max(lengths):
            net_input["padding_mask"] = torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1)  # (B, T)
            if self.source_lengths:
                net_input["source_lengths"] = lengths
        return {"id": ids, "net_input": net_input, "nsentences": len(samples), "ntokens": sum(lengths)}

    @property
    def supports_prefetch(self) -> bool:
        return getattr(self.blocks, "supports_prefetch", False)

    def prefetch(self, indices) -> None:
        self.blocks.prefetch(indices)

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        return True  # crops change from epoch to epoch, lengths do not

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._epoch[0] = epoch
