"""Images as batches for fairseq.

A data worker decodes, crops and resizes; images travel as bytes, and what is done to whole batches of them
(d2v_plugin/data/images/augment.py) happens on the device. Crops and masks depend on the seed, the epoch and the sample
alone, so they stay the same whatever the number of data workers and ranks, and after a resume. An image that cannot be
used is left out of its batch and counted.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from fairseq.data import FairseqDataset

from d2v_plugin.data.bad_files import BadFiles, readable
from d2v_plugin.data.images.geometry import Crop, CropRule
from d2v_plugin.data.images.index import ImageIndex
from d2v_plugin.data.images.io import KINDS, MAX_PIXELS, ImageError, decode
from d2v_plugin.data.images.masks import ImageMasks, ModelMasks
from d2v_plugin.data.images.store import ImageStore

ADVICE = "the log names each of them"


class ImageDataset(FairseqDataset):
    """Decode, crop and collate the images of an index.

    Args:
        index: the images; a sample's id is its position there.
        rule: how they are cropped.
        key: the model's name for its input.
        masks: draw masks for every batch, or None.
        training: order and masks change with the epoch; otherwise neither does.
        seed: of crops, masks and order.
        max_bad_files: see BadFiles.
        max_pixels, orient: see images.io.decode.
        local_cache_path: see ImageStore.
        model_takes: names of the model's further arguments. ``id`` brings the samples' ids, from which it seeds what
            it draws itself, ``masked_count`` the number of masked patches in every row, a host integer.
    """

    def __init__(
        self,
        index: ImageIndex,
        rule: CropRule,
        *,
        key: str = "source",
        masks: ImageMasks | ModelMasks | None = None,
        training: bool = True,
        seed: int = 1,
        max_bad_files: int = 100,
        max_pixels: int = MAX_PIXELS,
        orient: bool = False,
        local_cache_path: str | None = None,
        model_takes: Collection[str] = (),
    ):
        super().__init__()
        self.index = index
        self.rule = rule
        self.key = key
        self.masks = masks
        self.training = training
        self.seed = seed
        self.max_pixels = max_pixels
        self.orient = orient
        self.model_takes = model_takes
        self.store = ImageStore(index, local_cache_path)
        self.bad_files = BadFiles(len(index), max_bad_files, index.source, KINDS, ADVICE)
        # Shared, because data workers outlive an epoch and see nothing else that the main process sets later.
        self._epoch = torch.ones(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sizes(self) -> np.ndarray:
        """(N,) of 1: every image counts alike, as in fairseq."""
        return np.ones(len(self), dtype=np.int64)

    def size(self, index: int) -> int:
        return 1

    def num_tokens(self, index: int) -> int:
        return 1

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return np.ones(len(indices), dtype=np.int64)

    def filter_indices_by_size(self, indices, max_sizes):
        return indices, []

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    @property
    def epoch(self) -> int:
        """What draws hang on: the epoch in training, 0 otherwise."""
        return int(self._epoch[0]) if self.training else 0

    def ordered_indices(self) -> np.ndarray:
        """In training another order in every epoch, a function of the seed and the epoch alone."""
        if not self.training:
            return np.arange(len(self))
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self))

    def __getitem__(self, index: int) -> dict:
        """``{"id", "source"}``, source (S, S, 3) uint8, or None for an image that cannot be used."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """What torch's data workers call instead: the numbers of a batch are drawn together."""
        indices = [int(index) for index in indices]
        numbers = self.rule.numbers(self.seed, self.epoch, indices)
        return [self._sample(index, self.rule.chooser(row)) for index, row in zip(indices, numbers, strict=True)]

    def _sample(self, index: int, choose: Callable[[int, int], Crop]) -> dict:
        try:
            return {"id": index, "source": self._decode(index, choose)}
        except ImageError as error:
            self.bad_files.record(index, error)
            return {"id": index, "source": None}

    def _decode(self, index: int, choose: Callable[[int, int], Crop]) -> np.ndarray:
        entry = self.index.entry(index)
        try:
            return decode(self.store.read(index), entry, choose, orient=self.orient, max_pixels=self.max_pixels)
        except ImageError:
            if self.store.cache is None:
                raise
        # A copy may be what is broken, where another program made it and was stopped.
        data = self.store.read(index, original=True)
        return decode(data, entry, choose, orient=self.orient, max_pixels=self.max_pixels)

    def collater(self, samples: list[dict]) -> dict:
        """Batch of the readable samples.

        Returns:
            ``id`` (B,) int64; ``ids`` and ``epoch``, the same for the host and what draws hang on; ``net_input`` with
            the images (B, 3, S, S) uint8 under ``key`` and, as asked for, ``id`` and what ``masks`` draw.
        """
        samples = readable(samples, self)
        if not samples:
            return {}
        ids = [sample["id"] for sample in samples]
        size = self.rule.size
        batch = torch.empty(len(samples), 3, size, size, dtype=torch.uint8)
        for row, sample in enumerate(samples):
            batch[row] = torch.from_numpy(sample["source"]).permute(2, 0, 1)
        id_tensor = torch.tensor(ids)
        net_input = {self.key: batch}
        if "id" in self.model_takes:
            net_input["id"] = id_tensor
        if self.masks is not None:
            net_input |= self.masks.inputs(self.seed, self.epoch, ids, self.model_takes)
        return {"id": id_tensor, "ids": ids, "epoch": self.epoch, "net_input": net_input}
