"""Block masks that data workers draw: what those over frames and over patches have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from d2v_plugin.method.masking import SampleDraws, block_mask


@dataclass(frozen=True, kw_only=True)
class BlockMasks:
    """The fields are those of block_mask.

    Args:
        clones: masks of each sample.
    """

    prob: float
    length: int = 1
    adjust: float = 0.0
    inverse: bool = False
    dropout: float = 0.0
    clones: int = 1
    expand_adjacent: bool = False
    non_overlapping: bool = False

    def over(self, grid: tuple[int, ...], seed: int, epoch: int, ids: Sequence[int], **changes) -> Tensor:
        """(B * clones, positions of ``grid``) bool, True = masked; ``changes`` replace arguments of block_mask."""
        rule = {
            "prob": self.prob,
            "length": self.length,
            "adjust": self.adjust,
            "inverse": self.inverse,
            "dropout": self.dropout,
            "expand_adjacent": self.expand_adjacent,
            "non_overlapping": self.non_overlapping,
        }
        return block_mask(SampleDraws(seed, epoch, ids, self.clones), grid, **{**rule, **changes})
