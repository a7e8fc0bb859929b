"""RandAugment (arXiv:1909.13719) on the device: ``rand-m9-mstd0.5-inc1``, the policy of the fine-tuning recipes.

Each image goes through ``layers`` operations drawn for it out of fifteen, each of which is left out half of the time.
Images at the same kind of operation are treated together. Strength is ``magnitude`` on a scale of 0 to 10, with some
noise; "inc1" means that more is always stronger. After every operation values are rounded to the 256 levels that a
image would have between Pillow's operations.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d2v_plugin.data.images.colour import blend_colours
from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import SampleDraws

OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "saturation",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
AFFINE = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
BLENDS = ("brightness", "contrast", "saturation")  # in the order of image_colour's numbers
MOST_DEGREES = 30.0
MOST_SHEAR = 0.3
MOST_TRANSLATION = 0.45  # of the side
MOST_ENHANCEMENT = 0.9
LEAST_FACTOR = 0.1
MOST_ADDED = 110  # levels of 256
SOLARIZE_BELOW = 128
PART = re.compile(r"(m|mstd|n|p|inc)(\d+(?:\.\d*)?|\.\d+)")  # of a policy's name


@dataclass(frozen=True)
class RandAugment:
    """The policy.

    Args:
        magnitude, noise: mean and standard deviation of the strength, which is then clipped to 0..10.
        layers: operations one after the other.
        prob: how often an operation is done at all.
    """

    magnitude: float = 9.0
    noise: float = 0.5
    layers: int = 2
    prob: float = 0.5

    def __call__(self, images: Tensor, draws: SampleDraws, fill: Sequence[float]) -> Tensor:
        """Augment.

        Args:
            images: (B, 3, H, W) fp32, levels over 255.
            draws: rows are the images; on the host, where it is decided which operation an image goes through.
            fill: colour of what comes in from outside the image.
        Returns:
            (B, 3, H, W) fp32, levels over 255.
        """
        for layer in range(self.layers):
            operation, strength, sign = self.draw(draws, layer)
            images = apply_operations(images, operation, strength, sign, fill)
        return images

    @classmethod
    def parse(cls, policy: str) -> "RandAugment":
        """A policy in timm's spelling, such as ``rand-m9-mstd0.5-inc1``: ``m`` the magnitude, ``mstd`` its noise,
        ``n`` the layers, ``p`` the probability.

        Raises:
            UserError: anything else, or a policy without ``inc1``, whose operations are others.
        """
        pairs = [PART.fullmatch(part) for part in policy.split("-")[1:]]
        values = {found[1]: float(found[2]) for found in pairs if found}
        known = policy.split("-")[0] == "rand" and len(values) == len(pairs) and values.pop("inc", 0) == 1
        if not known or not 0 <= values.get("m", 10) <= 10 or not 0 <= values.get("p", 0.5) <= 1:
            raise UserError(
                f"task.auto_augment={policy!r} is not a policy that is known here; give rand-mM-mstdS-inc1 with M from "
                "0 to 10, such as rand-m9-mstd0.5-inc1, or '' for none"
            )
        # timm's where nothing is given
        return cls(values.get("m", 10.0), values.get("mstd", 0.0), int(values.get("n", 2)), values.get("p", 0.5))

    def draw(self, draws: SampleDraws, layer: int) -> tuple[list[int], Tensor, Tensor]:
        """Operation of each image (-1 for none), strength (B,) in 0..1 and sign (B,) of 1 or -1, on the host."""
        which, done, noise, sign = draws.uniform(f"image.randaugment.{layer}", 4).double().unbind(1)
        operation = (which * len(OPERATIONS)).long().masked_fill(done >= self.prob, -1)
        # half a step up, so that no number is 0, whose normal would be minus infinity
        strength = self.magnitude + self.noise * torch.special.ndtri(noise + 2.0**-25)
        return operation.tolist(), strength.clamp(0, 10) / 10, torch.where(sign < 0.5, 1.0, -1.0)


def apply_operations(
    images: Tensor, operation: list[int], strength: Tensor, sign: Tensor, fill: Sequence[float]
) -> Tensor:
    """One operation for each image, -1 for none; see RandAugment."""
    groups: dict[str, list[int]] = {}
    for row, number in enumerate(operation):
        if number >= 0:
            name = OPERATIONS[number]
            kind = "affine" if name in AFFINE else "blend" if name in BLENDS else name
            groups.setdefault(kind, []).append(row)
    result = images.clone()
    for kind, rows in sorted(groups.items()):
        place = torch.tensor(rows).to(images.device, non_blocking=True)
        names = [OPERATIONS[operation[row]] for row in rows]
        changed = _apply(kind, names, images[place], strength[rows], sign[rows].to(strength.dtype), fill)
        result[place] = (changed * 255).round_() / 255
    return result.clamp_(0, 1)


def _apply(
    kind: str, names: list[str], images: Tensor, strength: Tensor, sign: Tensor, fill: Sequence[float]
) -> Tensor:
    from kornia import enhance

    def to_device(values: Tensor) -> Tensor:
        return values.to(torch.float32).to(images.device, non_blocking=True)

    levels = (images * 255).round()
    if kind == "auto_contrast":
        return auto_contrast(levels) / 255
    if kind == "equalize":
        # kornia cuts fractions of a level off, and division leaves some a hair below theirs
        return enhance.equalize((levels + 0.25).clamp_(max=255) / 255)
    if kind == "invert":
        return enhance.invert(images)
    if kind == "posterize":
        bits = to_device(4 - (strength * 4).floor()).view(-1, 1, 1, 1)
        step = 2 ** (8 - bits)
        return (levels / step).floor() * step / 255
    if kind == "solarize":
        threshold = to_device(256 - (strength * 256).floor()).view(-1, 1, 1, 1)
        return torch.where(levels < threshold, images, 1 - images)
    if kind == "solarize_add":
        added = to_device((strength * MOST_ADDED).floor()).view(-1, 1, 1, 1)
        return torch.where(levels < SOLARIZE_BELOW, (levels + added).clamp(max=255), levels) / 255
    factor = to_device((1 + sign * strength * MOST_ENHANCEMENT).clamp(min=LEAST_FACTOR))
    if kind == "blend":
        change = torch.tensor([BLENDS.index(name) for name in names]).to(images.device, non_blocking=True)
        return blend_colours(images, change, factor)
    if kind == "sharpness":
        return enhance.sharpness(images, factor)
    return _warp(names, images, strength * sign, fill)


def auto_contrast(levels: Tensor) -> Tensor:
    """Stretch each channel of (B, 3, H, W) levels to 0..255, rounding down; a channel of one level stays."""
    low, high = levels.amin((2, 3), keepdim=True), levels.amax((2, 3), keepdim=True)
    flat = high <= low
    stretched = ((levels - low) * 255 / (high - low).masked_fill(flat, 1)).floor()
    return torch.where(flat, levels, stretched)


def _warp(names: list[str], images: Tensor, amounts: Tensor, fill: Sequence[float]) -> Tensor:
    """Rotate, shear or shift each image, sampled bicubically as in the recipes; ``fill`` comes in from outside.

    torch's cubic has the coefficient -0.75, Pillow's -1; bilinear sampling would be four times as far from the latter.
    """
    from kornia.geometry.transform import warp_affine

    height, width = images.shape[2:]
    matrices = [_matrix(name, amount, width, height) for name, amount in zip(names, amounts.tolist(), strict=True)]
    # kornia wants the way from the source to the result
    forward = torch.linalg.inv(torch.stack(matrices))[:, :2].float().to(images.device, non_blocking=True)
    colour = torch.tensor(tuple(fill), dtype=images.dtype).to(images.device, non_blocking=True)
    return warp_affine(images, forward, (height, width), "bicubic", "fill", align_corners=True, fill_value=colour)


def _matrix(name: str, amount: float, width: int, height: int) -> Tensor:
    """(3, 3) fp64: where in the source a pixel of the result comes from, both counted from the first pixel's centre.

    ``amount`` is in -1..1. Pillow's shears leave the upper left corner of the image where it is, rotations its
    middle.
    """
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name == "shear_x":
        b = MOST_SHEAR * amount
    elif name == "shear_y":
        d = MOST_SHEAR * amount
    elif name == "translate_x":
        c = MOST_TRANSLATION * amount * width
    elif name == "translate_y":
        f = MOST_TRANSLATION * amount * height
    else:
        angle = math.radians(MOST_DEGREES * amount)
        a, b, d, e = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
        x, y = width / 2, height / 2
        c, f = x - a * x - b * y, y - d * x - e * y
    # the first pixel's centre is half a pixel into the image, both ways
    c, f = c + (a + b - 1) / 2, f + (d + e - 1) / 2
    return torch.tensor([[a, b, c], [d, e, f], [0.0, 0.0, 1.0]], dtype=torch.float64)
