"""Masks over an image's patches, drawn for a whole batch in the data worker."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from d2v_plugin.data.block_masks import BlockMasks
from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import BeitMasks, SampleDraws, block_masked_count


@dataclass(frozen=True)
class ImageMasks(BlockMasks):
    """Block masks with the same number of masked patches in every row; the fields are those of block_mask.

    Raises:
        UserError: an image that patches do not fill, or settings that cannot work.
    """

    input_size: int
    patch_size: int = 16
    prob: float = field(default=0.75, kw_only=True)

    def __post_init__(self):
        check_patches(self.input_size, self.patch_size)
        # Otherwise the first batch would find out, in a data worker, whose errors come with its whole stack.
        self.draw(0, 0, [0])

    @property
    def grid(self) -> tuple[int, ...]:
        """Single patches are drawn from a row of them, as fairseq does; blocks from the square."""
        side = self.input_size // self.patch_size
        return (side * side,) if self.length == 1 else (side, side)

    @property
    def masked_count(self) -> int:
        """Masked patches in every row."""
        return block_masked_count(self.grid, prob=self.prob, inverse=self.inverse)

    def draw(self, seed: int, epoch: int, ids: Sequence[int]) -> Tensor:
        """(B * clones, patches) bool, True = masked; a function of seed, epoch and each sample's id."""
        # fairseq draws single patches without these
        plain = {"dropout": 0.0, "expand_adjacent": False, "non_overlapping": False} if self.length == 1 else {}
        return self.over(self.grid, seed, epoch, ids, **plain)

    def inputs(self, seed: int, epoch: int, ids: Sequence[int], takes: Collection[str]) -> dict:
        """``precomputed_mask``, what ``draw`` returns, and ``masked_count`` for a model that takes it."""
        found = {"precomputed_mask": self.draw(seed, epoch, ids)}
        return found | {"masked_count": self.masked_count} if "masked_count" in takes else found


@dataclass(frozen=True)
class ModelMasks:
    """The masks of data2vec 1.0, whose settings are the model's."""

    rule: BeitMasks

    def inputs(self, seed: int, epoch: int, ids: Sequence[int], takes: Collection[str]) -> dict:
        """``mask_indices`` (B, patches) bool, and ``masked_rows``, the flat positions that are masked in it.

        They differ in number from batch to batch; found here, nobody has to ask the device for them.
        """
        mask = self.rule.draw(SampleDraws(seed, epoch, ids))
        return {"mask_indices": mask, "masked_rows": mask.flatten().nonzero().squeeze(1)}


def check_patches(input_size: int, patch_size: int) -> None:
    """Raises ``UserError`` when patches of this size do not fill the image."""
    if patch_size <= 0 or input_size <= 0 or input_size % patch_size:
        lower = input_size - input_size % patch_size if 0 < patch_size <= input_size else patch_size
        raise UserError(
            f"task.input_size={input_size} is not a multiple of patch_size={patch_size}; "
            f"set task.input_size to {lower} or another multiple, or change the patch size"
        )
