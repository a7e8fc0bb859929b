"""Brightness, contrast and saturation, as Pillow's ``ImageEnhance`` and torchvision's ``ColorJitter`` change them."""

import torch
from torch import Tensor


def colour_jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change brightness (0), contrast (1) and saturation (2), in each image's own order.

    All three move the image away from another one: black, its own mean grey, its own greys. So one step serves a
    whole batch whose images are at different changes.

    Args:
        images: (B, 3, H, W) fp32 in [0, 1].
        factors: (B, 3), 1 leaves as it is.
        order: (B, 3) int64, a permutation of 0, 1, 2 in each row.
    Returns:
        (B, 3, H, W) in [0, 1].
    """
    for change in order.unbind(1):
        images = blend_colours(images, change, factors.gather(1, change.unsqueeze(1)).squeeze(1))
    return images


def blend_colours(images: Tensor, change: Tensor, factor: Tensor) -> Tensor:
    """One change, ``change`` (B,) of 0 to 2 as in ``colour_jitter``, by ``factor`` (B,)."""
    from kornia.color import rgb_to_grayscale

    change, factor = change.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    grey = rgb_to_grayscale(images)
    base = torch.where(change == 2, grey, grey.mean((2, 3), keepdim=True)) * (change != 0)
    return torch.lerp(base.expand_as(images), images, factor).clamp_(0, 1)
