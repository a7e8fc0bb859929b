"""Masks over a recording's frames, drawn for a whole batch in the data worker."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from d2v_plugin.data.block_masks import BlockMasks
from d2v_plugin.method.masking import block_masked_count
from d2v_plugin.modules.conv_spec import ConvSpec


@dataclass(frozen=True)
class AudioMasks(BlockMasks):
    """Block masks with one number of masked frames in every row of a batch; the fields are those of block_mask.

    fairseq draws a mask over each whole recording and cuts a piece out of it for the batch, which leaves rows with
    different numbers of masked frames, and its model then takes the first row's for all. These masks are drawn over
    the frames that are in the batch.

    With padding the shortest recording of the batch decides: every row gets the number of frames that ``prob`` makes
    of it, longer ones by fewer blocks, so that none has to be masked where it is padded, or whole. In a recording too
    short for ``prob`` one frame is masked, or one is left.

    Args:
        spec: of the model's feature extractor, which says how many frames there are.
    Raises:
        UserError: settings that cannot work for any recording.
    """

    spec: ConvSpec

    def __post_init__(self):
        # In a recording with room for everything, only settings can be wrong.
        self.over((max(1000, 10 * self.length),), 0, 0, [0])

    def draw(
        self, seed: int, epoch: int, ids: Sequence[int], lengths: Sequence[int], width: int
    ) -> tuple[torch.Tensor, int]:
        """Masks of a batch, a function of the seed, the epoch and each recording's id, but for the common number.

        Args:
            ids: B numbers that tell recordings apart.
            lengths: B valid samples of each row.
            width: samples of the batch.
        Returns:
            (B * clones, frames) bool, True = masked, and the number of masked frames in every row.
        """
        T = self.spec.frames(width)
        lengths = self.spec.frames(torch.as_tensor(lengths, dtype=torch.long))
        count = block_masked_count((T,), prob=self.prob, inverse=self.inverse, lengths=lengths)
        per_row = lengths.repeat_interleave(self.clones)
        mask = self.over((T,), seed, epoch, ids, length=min(self.length, T), lengths=per_row)
        return mask, count
