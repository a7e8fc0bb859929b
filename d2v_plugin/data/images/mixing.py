"""Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) with smoothed labels.

Every image is mixed with the one as far from the batch's other end, as timm does it. Both are one weighted sum: mixup
weighs all pixels by lambda, cutmix those outside a box by 1 and those inside by 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d2v_plugin.data.images.erase import inside_boxes
from d2v_plugin.errors import UserError

MODES = ("batch", "pair", "elem")
STREAM = 0x6D6978  # keeps these draws apart from others with the same seed


@dataclass(frozen=True)
class Mixing:
    """How labels and images are mixed.

    Args:
        classes: number of labels.
        mixup, cutmix: parameter of the Beta distribution that lambda is drawn from; 0 for never.
        prob: how often anything is mixed.
        switch_prob: how often it is cutmix, where both are on.
        mode: one draw for the ``batch``, for each ``pair`` of partners, or for each image (``elem``).
        label_smoothing: what all classes share of a label's weight.
    """

    classes: int
    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: str = "batch"
    label_smoothing: float = 0.1

    def __post_init__(self):
        if self.mode not in MODES:
            raise UserError(f"model.mixup_mode must be one of {', '.join(MODES)}, got {self.mode!r}")

    def __call__(
        self, images: Tensor, labels: Tensor, seed: int, epoch: int, ids: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (B, 3, H, W).
            labels: (B,) int64.
            ids: B host integers; draws hang on seed, epoch and these.
        Returns:
            Images of the same dtype and (B, classes) fp32 whose rows add up to 1.
        """
        B, _, height, width = images.shape
        share, boxes, is_cut = self.draw(seed, epoch, ids, height, width)
        target = self.smooth(labels)
        if not is_cut.any() and bool((share == 1).all()):
            return images, target
        device = images.device
        weight = share.to(device, non_blocking=True)
        pixels = weight.view(-1, 1, 1, 1)
        if is_cut.any():
            outside = ~inside_boxes(boxes, height, width, device)
            pixels = torch.where(is_cut.to(device, non_blocking=True).view(-1, 1, 1, 1), outside.float(), pixels)
        mixed = torch.lerp(images.flip(0).float(), images.float(), pixels.expand(images.shape)).to(images.dtype)
        return mixed, torch.lerp(target.flip(0), target, weight.unsqueeze(1).expand_as(target))

    def smooth(self, labels: Tensor) -> Tensor:
        """(B,) int64 -> (B, classes) fp32, 1 - smoothing at the label, smoothing spread over all classes."""
        target = torch.full((len(labels), self.classes), self.label_smoothing / self.classes, device=labels.device)
        return target.scatter_add_(1, labels.view(-1, 1), torch.full_like(target[:, :1], 1 - self.label_smoothing))

    def draw(self, seed: int, epoch: int, ids: Sequence[int], height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Own share of each image (B,) fp32, box to cut (B, 4) int64 and whether it is cut (B,) bool, on the host.

        The share of a cut image is that of the pixels it keeps, after the box was clipped at the border.
        """
        B = len(ids)
        draws = {"batch": 1, "pair": (B + 1) // 2, "elem": B}[self.mode]
        generators = [np.random.default_rng((STREAM, seed, epoch, ids[n])) for n in range(draws)]
        drawn = [self._one(rng, height, width) for rng in generators]
        if self.mode == "batch":
            drawn = drawn * B
        elif self.mode == "pair":
            drawn = [drawn[min(n, B - 1 - n)] for n in range(B)]
        share, boxes, is_cut = zip(*drawn, strict=True)
        return torch.tensor(share), torch.tensor(boxes), torch.tensor(is_cut)

    def _one(self, rng: np.random.Generator, height: int, width: int) -> tuple[float, tuple[int, ...], bool]:
        none = (0, 0, 0, 0)
        if rng.random() >= self.prob or self.mixup <= 0 >= self.cutmix:
            return 1.0, none, False
        is_cut = self.cutmix > 0 and (self.mixup <= 0 or rng.random() < self.switch_prob)
        share = float(rng.beta(*([self.cutmix if is_cut else self.mixup] * 2)))
        if not is_cut:
            return share, none, False
        side = (1 - share) ** 0.5
        half_h, half_w = int(height * side) // 2, int(width * side) // 2
        y, x = int(rng.integers(height)), int(rng.integers(width))
        top, bottom = max(y - half_h, 0), min(y + half_h, height)
        left, right = max(x - half_w, 0), min(x + half_w, width)
        box = (top, left, bottom - top, right - left)
        return 1 - box[2] * box[3] / (height * width), box, True
