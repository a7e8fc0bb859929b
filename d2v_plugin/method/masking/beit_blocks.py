"""Masks of BEiT over a grid of patches: rectangles of random area and shape, until enough patches are covered.

Follows the rules of BEiT (arXiv:2106.08254, algorithm 1) as fairseq's ``data2vec_vision`` has them. A rectangle's area
is uniform between ``smallest`` and what is still missing (``largest`` at most), the logarithm of its height over its
width uniform, its place uniform. One that fills a side of the grid, masks nothing new or more than is missing is drawn
again; after ten in a row a mask stays as it is. So rows have ``count`` masked patches or somewhat fewer. Nothing needs
them equal where masked patches stay in the encoder's input, and the loss is a mean over all that are masked.

One thing is not theirs: a row with no rectangle at all, of which there would be nothing to learn, goes on.
"""

import math
from dataclasses import dataclass

import torch

from d2v_plugin.errors import UserError

ASPECT = 0.3  # height over width, up to its inverse
ATTEMPTS = 10
AT_A_TIME = 32  # attempts that numbers are drawn for


@dataclass(frozen=True)
class BeitMasks:
    """How to mask; field names of the settings are upstream's.

    Args:
        side: patches along a side of the grid.
        num_mask_patches: masked patches of a row, or somewhat fewer.
        min_mask_patches_per_block, max_mask_patches_per_block: area of a rectangle.
    Raises:
        UserError: settings that cannot work.
    """

    side: int
    num_mask_patches: int
    min_mask_patches_per_block: int
    max_mask_patches_per_block: int

    def __post_init__(self):
        patches, count = self.side**2, self.num_mask_patches
        smallest, largest = self.min_mask_patches_per_block, self.max_mask_patches_per_block
        grid = f"the image's {self.side} x {self.side} patches"
        if not 0 < count < patches:
            raise UserError(
                f"model.num_mask_patches={count} must be at least 1 and below {patches}, {grid}; the papers' recipes "
                "mask 40 to 60 percent"
            )
        if not 1 <= smallest <= largest:
            raise UserError(
                f"model.min_mask_patches_per_block={smallest} must be at least 1 and at most "
                f"model.max_mask_patches_per_block={largest}"
            )
        if smallest > count:
            raise UserError(
                f"model.min_mask_patches_per_block={smallest} is more than model.num_mask_patches={count}; lower it"
            )
        if smallest > (self.side - 1) ** 2:
            raise UserError(
                f"model.min_mask_patches_per_block={smallest}: no block of so many patches fits inside {grid} without "
                f"filling a side; lower it to {(self.side - 1) ** 2} or less"
            )

    def draw(self, draws):
        """(rows, side * side) bool on the CPU, True = masked.

        Args:
            draws: ``SampleDraws`` or ``GeneratorDraws``, on the CPU.
        """
        mask = torch.zeros(draws.rows, self.side, self.side, dtype=torch.bool)
        count = torch.zeros(draws.rows, dtype=torch.long)
        failures = torch.zeros_like(count)
        rows, attempt = torch.arange(draws.rows), 0
        while len(rows):
            if attempt % AT_A_TIME == 0:
                numbers = draws.uniform(f"beit.{attempt // AT_A_TIME}", 4 * AT_A_TIME)
                numbers = numbers.double().view(-1, AT_A_TIME, 4)
            missing = (self.num_mask_patches - count[rows]).clamp(max=self.max_mask_patches_per_block)
            seen = mask[rows]
            new = self._rectangles(numbers[rows, attempt % AT_A_TIME], missing) & ~seen
            added = new.sum((1, 2))
            taken = (added > 0) & (added <= missing)
            mask[rows] = seen | (new & taken.view(-1, 1, 1))
            count[rows] += added * taken
            failures[rows] = torch.where(taken, 0, failures[rows] + 1)
            # most rows are done early; the others are worked on alone
            unfinished = (count < self.num_mask_patches) & ((failures < ATTEMPTS) | (count == 0))
            rows = unfinished.nonzero().squeeze(1)
            attempt += 1
        return mask.flatten(1)

    def _rectangles(self, numbers, missing):
        """(R, side, side) bool, one rectangle a row, none where it would fill a side; from ``numbers`` (R, 4)."""
        area, shape, down, across = numbers.unbind(1)
        area = self.min_mask_patches_per_block + area * (missing - self.min_mask_patches_per_block)
        aspect = torch.exp(math.log(ASPECT) * (1 - 2 * shape))
        height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (height < self.side) & (width < self.side)
        top = (down * (self.side - height + 1)).floor()
        left = (across * (self.side - width + 1)).floor()
        height = height * fits
        line = torch.arange(self.side)
        rows = (line >= top.unsqueeze(1)) & (line < (top + height).unsqueeze(1))
        columns = (line >= left.unsqueeze(1)) & (line < (left + width).unsqueeze(1))
        return rows.unsqueeze(2) & columns.unsqueeze(1)
