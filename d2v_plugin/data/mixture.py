"""Several modalities in one training: every batch is of one of them, and so are all batches of an update.

fairseq's ``MultiModalityDataset`` and ``GroupedEpochBatchIterator`` do the work. What they get wrong for more than one
dataset is corrected here.
"""

import logging

import numpy as np
from fairseq.data.audio.multi_modality_dataset import ModalityDatasetItem, MultiModalityDataset
from fairseq.data.iterators import GroupedEpochBatchIterator

from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)


class ModalityMixture(MultiModalityDataset):
    """Datasets of different modalities one after the other; ``net_input["mode"]`` names a batch's.

    Args:
        datasets: by modality, ``{"AUDIO": dataset}``.
        max_positions: by modality, what its task allows.
        ratios: by modality, how often its batches come in an epoch.
    """

    # its own test asks each dataset and fails where one has another idea of it
    supports_prefetch = False

    def __init__(self, datasets: dict, max_positions: dict, ratios: dict[str, float]):
        super().__init__([ModalityDatasetItem(name, each, max_positions[name]) for name, each in datasets.items()])
        self.ratios = list(ratios.values())

    @property
    def sizes(self) -> np.ndarray:
        """(N,) in each modality's own unit."""
        return np.concatenate([np.asarray(each.sizes) for each in self.datasets])

    def batches(
        self, limits: dict[str, tuple[int | None, int | None]], multiple: int, seed: int, mixed: bool = True
    ) -> list[list]:
        """Batches of each modality, as lists of indices.

        Args:
            limits: by modality, most tokens and most samples in a batch.
            multiple: batches of more samples hold a multiple of this.
            seed: of the order among samples of one length.
            mixed: as often as ``ratios`` says; otherwise once.
        Raises:
            UserError: a sample that no batch can hold.
        """
        for name, dataset, bound in zip(self.id_to_mode, self.datasets, self.max_positions, strict=True):
            fitting = dataset.filter_indices_by_size(np.arange(len(dataset)), bound)[0]
            longest, most = int(max(dataset.num_tokens_vec(fitting), default=0)), limits[name][0]
            if most is not None and longest > most:
                raise UserError(
                    f"the longest {name} sample has a size of {longest} and max_tokens={most} is the most that a batch "
                    f"holds; raise task.{name.lower()}_max_tokens, or limit the samples of task.{name.lower()}"
                )
        self.max_tokens, self.max_sentences = map(list, zip(*(limits[n] for n in self.id_to_mode), strict=True))
        self.raw_sub_batch_samplers = []  # fairseq would go on with those of the last epoch
        ratios = self.ratios if mixed else [1] * len(self.ratios)
        return self.get_batch_samplers(ratios, multiple, seed)


class ModalityBatches(GroupedEpochBatchIterator):
    """Batches of an epoch, shuffled so that each update sees one modality on all ranks."""

    def __init__(self, dataset: ModalityMixture, *, batch_samplers: list[list], required: bool, **options):
        super().__init__(dataset, dataset.collater, batch_samplers, **options)
        for name, batches, used in zip(dataset.id_to_mode, batch_samplers, self.lengths, strict=True):
            if used == 0 and required:
                raise UserError(
                    f"{name} has {len(batches)} batches, and an update takes {self.step_size} of one modality (ranks "
                    "times update_freq); make its batches smaller, its ratio larger, or leave the modality out"
                )
            if used < len(batches):
                logger.info("%s: %d of %d batches fit whole updates", name, used, len(batches))

    def __len__(self) -> int:
        """Batches of this rank; fairseq counts those of all."""
        return sum(self.lengths) // self.num_shards

    @property
    def first_batch(self) -> dict:
        """Stands in for empty batches; fairseq takes it from the first modality, which may have none."""
        batches = next(batches for batches in self.frozen_batches if batches)
        return self.collate_fn([self.dataset[i] for i in batches[0]])
