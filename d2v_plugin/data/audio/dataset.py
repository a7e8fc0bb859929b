"""Waveforms of a manifest as batches for fairseq.

Batches are those of fairseq's FileAudioDataset for the same files, with three differences: a crop depends on the seed,
the epoch and the entry only, so it stays the same whatever the number of data workers and after a resume, and masks
likewise; a file that cannot be used is skipped and counted instead of ending the run; and with padding an entry is
sized by what reaches the model, which is never more than ``max_sample_size``.
"""

from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from fairseq.data import FairseqDataset

from d2v_plugin.data.audio.io import AudioError, read_audio
from d2v_plugin.data.audio.manifest import Manifest
from d2v_plugin.data.audio.masks import AudioMasks
from d2v_plugin.data.bad_files import BadFiles, readable
from d2v_plugin.errors import UserError

NO_LIMIT = np.iinfo(np.int64).max


class AudioDataset(FairseqDataset):
    """Read, normalise, crop and collate the entries of a manifest.

    Args:
        manifest: entries, already filtered by length.
        sample_rate: Hz; other rates are resampled, or skipped as bad when ``resample`` is False.
        max_sample_size: longest waveform in a batch, samples; longer ones are cropped at a random place.
        pad: pad shorter waveforms with zeros and add ``padding_mask`` (True = padding); otherwise crop all to the
            shortest.
        normalize: zero mean and unit variance over each whole recording, before it is cropped.
        shuffle: order by length, equal lengths shuffled; otherwise the manifest's order.
        num_buckets: pad every batch to one of this many lengths (needs ``pad``), 0 for none.
        max_bad_files: see BadFiles.
        seed: of the crops and the masks.
        shortest: fewest samples that make one frame of the model.
        masks: draw masks for every batch, or None.
        model_takes: names of the model's further arguments. ``source_lengths`` brings the lengths of the rows where
            they are padded and ``masked_count`` the masked frames in every row, integers on the host that spare the
            model reading them from the device; ``id`` brings the entries' numbers, from which it seeds what it draws
            itself.
    """

    def __init__(
        self,
        manifest: Manifest,
        sample_rate: int,
        *,
        max_sample_size: int | None = None,
        pad: bool = False,
        normalize: bool = False,
        shuffle: bool = True,
        num_buckets: int = 0,
        resample: bool = True,
        max_bad_files: int = 100,
        seed: int = 1,
        shortest: int = 1,
        masks: AudioMasks | None = None,
        model_takes: Collection[str] = (),
    ):
        super().__init__()
        if num_buckets > 0 and not pad:
            raise UserError("num_batch_buckets needs padded batches; set enable_padding or num_batch_buckets=0")
        self.manifest = manifest
        self.sample_rate = sample_rate
        self.max_sample_size = NO_LIMIT if max_sample_size is None else max_sample_size
        self.pad = pad
        self.normalize = normalize
        self.shuffle = shuffle
        self.resample = resample
        self.seed = seed
        self.shortest = shortest
        self.masks = masks
        self.model_takes = model_takes
        self.bad_files = BadFiles(len(manifest), max_bad_files, manifest.path)
        # Shared, because data workers outlive an epoch and see nothing else that the main process sets later.
        self._epoch = torch.ones(1, dtype=torch.int64).share_memory_()
        self._bucketed_sizes = bucket_sizes(self.sizes, num_buckets) if num_buckets > 0 else None

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64, samples that reach the model."""
        return np.minimum(self.manifest.sizes, self.max_sample_size)

    def size(self, index: int) -> int:
        return min(int(self.manifest.sizes[index]), self.max_sample_size)

    def num_tokens(self, index: int) -> int:
        return self.size(index)

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return np.minimum(self.manifest.sizes[indices], self.max_sample_size)

    def filter_indices_by_size(self, indices, max_sizes):
        # cropping takes care of long entries, the manifest's filter of short ones
        return indices, []

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    def ordered_indices(self) -> np.ndarray:
        """Longest first, ties shuffled. fairseq seeds NumPy's global generator with seed + epoch around this call."""
        if not self.shuffle:
            return np.arange(len(self))
        return np.lexsort([np.random.permutation(len(self)), self.sizes])[::-1]

    def __getitem__(self, index: int) -> dict:
        """``{"id", "source"}``, source (samples,) fp32, or None for a file that cannot be used."""
        index = int(index)
        try:
            wave = read_audio(
                self.manifest.entry(index), self.sample_rate, resample=self.resample, shortest=self.shortest
            )
        except AudioError as error:
            self.bad_files.record(index, error)
            return {"id": index, "source": None}
        source = torch.from_numpy(wave)
        if self.normalize:
            source = F.layer_norm(source, source.shape)
        return {"id": index, "source": source}

    def collater(self, samples: list[dict]) -> dict:
        """Batch of the readable samples.

        Returns:
            ``id`` (B,) int64 and ``net_input``: ``source`` (B, samples) fp32; with padding ``padding_mask``, bool of
            the same shape, True = padding; with masks ``precomputed_mask`` (B * clones, frames) bool; and what the
            model takes.
        """
        samples = readable(samples, self)
        if not samples:
            return {}
        sources = [sample["source"] for sample in samples]
        lengths = [len(source) for source in sources]
        width = min(max(lengths) if self.pad else min(lengths), self.max_sample_size)
        padded_width = width
        if self._bucketed_sizes is not None:
            padded_width = max(width, *(int(self._bucketed_sizes[sample["id"]]) for sample in samples))

        batch = sources[0].new_zeros(len(sources), padded_width)
        lengths = [min(length, width) for length in lengths]
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            batch[row, :length] = self._crop(sample["source"], length, sample["id"])
        net_input = {"source": batch}
        if self.pad:
            positions = torch.arange(padded_width)
            net_input["padding_mask"] = positions >= torch.tensor(lengths).unsqueeze(1)  # (B, samples)
            if "source_lengths" in self.model_takes:
                net_input["source_lengths"] = lengths
        ids = torch.tensor([sample["id"] for sample in samples])
        if "id" in self.model_takes:
            net_input["id"] = ids
        if self.masks is not None:
            mask, count = self.masks.draw(self.seed, int(self._epoch[0]), ids, lengths, padded_width)
            net_input["precomputed_mask"] = mask
            if "masked_count" in self.model_takes:
                net_input["masked_count"] = count
        return {"id": ids, "net_input": net_input}

    def _crop(self, source: torch.Tensor, length: int, index: int) -> torch.Tensor:
        spare = len(source) - length
        if spare == 0:
            return source
        start = int(np.random.default_rng((self.seed, int(self._epoch[0]), index)).integers(spare + 1))
        return source[start : start + length]


def bucket_sizes(sizes: np.ndarray, num_buckets: int) -> np.ndarray:
    """Round each size up to one of at most ``num_buckets`` quantiles of all sizes; (N,) int64."""
    quantiles = np.percentile(sizes, np.linspace(0, 100, num_buckets + 1)[1:], method="lower")
    edges = np.unique(quantiles)
    return edges[np.searchsorted(edges, sizes)]
