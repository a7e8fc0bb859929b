"""What happens to a batch of images on the device, between the crop and the model.

Everything is drawn from (seed, epoch, sample id) by SampleDraws, and nothing from kornia's or torch's own generators:
kornia gets its parameters from here. So a sample is treated alike in any batch, on any rank, on a CPU or a GPU. Only
mixup and cutmix depend on the batch, whose samples they mix.

The order is that of the published recipes: flip, colour jitter or RandAugment, normalise, erase, mix. Colour jitter
comes after the crop; BEiT's recipe has it before, so contrast there turns about the mean of the whole image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d2v_plugin.data.images.colour import colour_jitter
from d2v_plugin.data.images.erase import RandomErase
from d2v_plugin.data.images.mixing import Mixing
from d2v_plugin.data.images.randaugment import RandAugment
from d2v_plugin.method.masking import SampleDraws

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AugmentConfig:
    """Which steps are taken.

    Args:
        mean, std: of the three channels, in units of full brightness.
        flip: how many of the images are mirrored, left to right.
        jitter: most that brightness, contrast and saturation are changed by, each; 0 for none.
        jitter_target: a second image, ``target``, from the same crop and flip with a jitter of its own.
        randaugment, erase, mixing: fine-tuning's, None for none.
    """

    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    flip: float = 0.5
    jitter: float = 0.0
    jitter_target: bool = False
    randaugment: RandAugment | None = None
    erase: RandomErase | None = None
    mixing: Mixing | None = None


class BatchAugment:
    """Augment batches as a configuration says.

    Args:
        config: AugmentConfig.
        seed: of all draws.
    """

    def __init__(self, config: AugmentConfig, seed: int = 1):
        self.config = config
        self.seed = seed
        # Made once per device: a copy from the host would wait for everything that is queued there.
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, images: Tensor, ids: Sequence[int], epoch: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor | None]:
        """Augment for training.

        Args:
            images: (B, 3, H, W) uint8; stays as it is.
            ids: B host integers.
        Returns:
            ``(source, target)``, (B, 3, H, W) in ``dtype``; target is None without ``jitter_target``.
        """
        config = self.config
        draws = SampleDraws(self.seed, epoch, ids, device=images.device)
        levels = images.float() / 255
        if config.flip:
            levels = flip(levels, draws.uniform("image.flip", 1)[:, 0] < config.flip)
        target = None
        if config.jitter_target:
            target = self.normalise(self._jittered(levels, draws, "target"), dtype)
        if config.jitter:
            levels = self._jittered(levels, draws, "source")
        if config.randaugment is not None:
            levels = config.randaugment(levels, SampleDraws(self.seed, epoch, ids), fill=config.mean)
        source = self.normalise(levels, dtype)
        if config.erase is not None:
            source = config.erase(source, self.seed, epoch, ids)
        return source, target

    def plain(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Without anything random, for validation: (B, 3, H, W) uint8 -> normalised ``dtype``."""
        return self.normalise(images.float() / 255, dtype)

    def mix(self, images: Tensor, labels: Tensor, ids: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Mixup and cutmix: (B, 3, H, W) and labels (B,) -> mixed images and (B, classes) fp32 soft targets."""
        return self.config.mixing(images, labels, self.seed, epoch, ids)

    def normalise(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        """(levels - mean) / std by channel, computed in fp32."""
        if levels.device not in self._constants:
            values = torch.tensor([self.config.mean, self.config.std]).view(2, 3, 1, 1)
            self._constants[levels.device] = values.to(levels.device).unbind(0)
        mean, std = self._constants[levels.device]
        return ((levels - mean) / std).to(dtype)

    def _jittered(self, levels: Tensor, draws: SampleDraws, which: str) -> Tensor:
        strength = self.config.jitter
        factors = 1 + strength * (2 * draws.uniform(f"image.jitter.{which}", 3) - 1)
        order = draws.uniform(f"image.jitter.{which}.order", 3).argsort(dim=1)
        return colour_jitter(levels, factors, order)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images that ``flipped`` (B,) bool names."""
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
