"""Random erasing: a rectangle of each image becomes noise (arXiv:1708.04896), as timm's ``pixel`` mode does it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d2v_plugin.method.masking import SampleDraws

ATTEMPTS = 10


@dataclass(frozen=True)
class RandomErase:
    """Erase a rectangle from some of the images.

    Args:
        prob: share of the images.
        area: bounds of the rectangle's share of the image.
        aspect: least height over width; the greatest is its inverse.
    """

    prob: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: float = 0.3

    def __call__(self, images: Tensor, seed: int, epoch: int, ids: Sequence[int]) -> Tensor:
        """Images (B, 3, H, W), normalised; the rectangle gets standard normal noise, each value its own."""
        height, width = images.shape[2:]
        draws = SampleDraws(seed, epoch, ids)
        boxes = self.boxes(draws, height, width)
        rows = boxes[:, 2].nonzero()[:, 0].tolist()
        if not rows:
            return images
        erased = SampleDraws(seed, epoch, [ids[row] for row in rows], device=images.device)
        uniform = erased.uniform("image.erase.noise", images[0].numel())
        # Half a step up, so that no number is 0, whose normal would be minus infinity.
        noise = torch.special.ndtri(uniform + 2.0**-25).view(-1, *images.shape[1:]).to(images.dtype)
        place = torch.tensor(rows).to(images.device, non_blocking=True)
        inside = inside_boxes(boxes[rows], height, width, images.device)
        return images.index_copy(0, place, torch.where(inside, noise, images[place]))

    def boxes(self, draws: SampleDraws, height: int, width: int) -> Tensor:
        """(B, 4) int64 on the host: top, left, height, width; of no height where nothing is erased."""
        numbers = draws.uniform("image.erase.box", 4 * ATTEMPTS).double().view(-1, ATTEMPTS, 4)
        low, high = self.area
        area = height * width * (low + numbers[:, :, 0] * (high - low))
        shape = torch.exp((2 * numbers[:, :, 1] - 1) * -math.log(self.aspect))
        h, w = (area * shape).sqrt().round(), (area / shape).sqrt().round()
        fits = (h < height) & (w < width) & (h > 0) & (w > 0)
        chosen = fits & (draws.uniform("image.erase", 1) < self.prob)
        top = (numbers[:, :, 2] * (height - h + 1)).floor()
        left = (numbers[:, :, 3] * (width - w + 1)).floor()
        first = fits.long().argmax(1)
        rows = torch.arange(len(first))
        return (torch.stack([top, left, h, w], 2) * chosen.unsqueeze(2)).long()[rows, first]


def inside_boxes(boxes: Tensor, height: int, width: int, device: torch.device) -> Tensor:
    """(N, 1, H, W) bool: True inside the boxes (N, 4) of top, left, height and width."""
    top, left, h, w = boxes.to(device, non_blocking=True).view(-1, 4, 1, 1).unbind(1)
    y = torch.arange(height, device=device).view(1, -1, 1)
    x = torch.arange(width, device=device).view(1, 1, -1)
    return ((y >= top) & (y < top + h) & (x >= left) & (x < left + w)).unsqueeze(1)
