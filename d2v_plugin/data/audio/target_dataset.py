"""Audio with its transcript, for CTC or sequence-to-sequence fine-tuning."""

import logging

import numpy as np
import torch
from fairseq.data import BaseWrapperDataset, data_utils

from d2v_plugin.data.audio.dataset import AudioDataset
from d2v_plugin.data.audio.labels import Labels
from d2v_plugin.data.bad_files import readable
from d2v_plugin.data.complete_batches import complete_batches
from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)


class TargetDataset(BaseWrapperDataset):
    """Adds ``target``, ``target_lengths`` and ``ntokens`` to each batch, as fairseq's AddTargetDataset does.

    Utterances without a transcript, or with one that the audio has too few frames to spell, are left out and counted
    (CTC would answer with an infinite loss).

    Args:
        dataset: the audio; labels: as many transcripts, in the same order.
        pad, eos: indices of these symbols.
        add_to_input: sequence-to-sequence: append eos to targets, add ``prev_output_tokens``.
        frames: (N,) frames the model makes of each utterance; None for no check.
    Raises:
        UserError: nothing is left.
    """

    def __init__(
        self,
        dataset: AudioDataset,
        labels: Labels,
        pad: int,
        eos: int,
        *,
        add_to_input: bool = False,
        frames: np.ndarray | None = None,
    ):
        super().__init__(dataset)
        if len(labels) != len(dataset):
            raise ValueError(f"{len(labels)} transcripts for {len(dataset)} utterances; load both with the same rows")
        self.labels = labels
        self.pad = pad
        self.eos = eos
        self.add_to_input = add_to_input
        empty = labels.lengths == 0
        too_long = np.zeros_like(empty) if frames is None else labels.frames_needed() > frames
        self.usable = ~(empty | too_long)
        self.skipped = {}
        for reason, mask in (("empty transcript", empty), ("transcript longer than the audio", too_long & ~empty)):
            if mask.any():
                self.skipped[reason] = int(mask.sum())
                lines = ", ".join(str(row + 1) for row in labels.rows[mask][:5])
                logger.warning("%s: left out %d utterances: %s (lines %s)", labels.path, mask.sum(), reason, lines)
        if not self.usable.any():
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items())
            raise UserError(
                f"{labels.path}: none of its {len(labels)} utterances can be used ({reasons}); check that its lines "
                "are in the manifest's order and that the manifest's sizes are frames"
            )

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        # int32, as fairseq's Dictionary encodes; (symbols,)
        sample["label"] = torch.from_numpy(self.labels[index].astype(np.int32))
        return sample

    def size(self, index: int) -> tuple[int, int]:
        return self.dataset.size(index), int(self.labels.lengths[index])

    def ordered_indices(self) -> np.ndarray:
        order = self.dataset.ordered_indices()
        return order[self.usable[order]]

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return self.dataset.num_tokens_vec(indices)

    def filter_indices_by_size(self, indices, max_sizes):
        """Leave out utterances longer than ``max_sizes``, one bound or (samples, symbols)."""
        longest_audio, longest_label = max_sizes if isinstance(max_sizes, (tuple, list)) else (max_sizes, None)
        keep = np.ones(len(indices), bool)
        if longest_audio is not None:
            keep &= self.dataset.num_tokens_vec(indices) <= longest_audio
        if longest_label is not None:
            keep &= self.labels.lengths[indices] <= longest_label
        return indices[keep], indices[~keep].tolist()

    def batch_by_size(self, indices, max_tokens=None, max_sentences=None, required_batch_size_multiple=1):
        return complete_batches(self.dataset, indices, max_tokens, max_sentences, required_batch_size_multiple)

    def collater(self, samples: list[dict]) -> dict:
        samples = readable(samples, self, allowed=lambda index: bool(self.usable[index]))
        collated = self.dataset.collater(samples)
        if not collated:
            return collated
        targets = [sample["label"] for sample in samples]
        if self.add_to_input:
            eos = torch.tensor([self.eos], dtype=torch.int32)
            collated["net_input"]["prev_output_tokens"] = data_utils.collate_tokens(
                [torch.cat([eos, target]) for target in targets], pad_idx=self.pad
            )
            targets = [torch.cat([target, eos]) for target in targets]
        collated["target_lengths"] = torch.tensor([len(target) for target in targets])
        collated["ntokens"] = sum(len(target) for target in targets)
        collated["target"] = data_utils.collate_tokens(targets, pad_idx=self.pad)
        return collated
