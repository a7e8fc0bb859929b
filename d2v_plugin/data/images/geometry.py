"""Which part of an image is taken: a rule gives a crop, from the image's size and numbers drawn for the sample.

The random crop is that of torchvision's ``RandomResizedCrop``, the centre crop that of its ``Resize`` and
``CenterCrop``, on Pillow images.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from d2v_plugin.method.masking import SampleDraws

ATTEMPTS = 10
RATIO = (3 / 4, 4 / 3)
MAE_SCALE = (0.2, 1.0)
BEIT_SCALE = (0.08, 1.0)
# Evaluation looks at the middle 224 of 256 pixels; at higher resolution at everything.
EVAL_SHARE = 224 / 256
EVAL_SHARE_UP_TO = 224


@dataclass(frozen=True)
class Crop:
    """A box of an image, in its pixels, and the side of the square it is resized to.

    ``isolated``: nothing outside the box is looked at, as if it were cut out first; the box is whole numbers then.
    ``right``, ``down``: how far the resized square is moved, in its pixels; black comes in.
    """

    left: float
    top: float
    width: float
    height: float
    size: int
    bicubic: bool = True
    isolated: bool = False
    right: int = 0
    down: int = 0

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height


def random_crop(
    width: int, height: int, numbers: Tensor, size: int, scale: tuple[float, float], ratio: tuple[float, float] = RATIO
) -> Crop:
    """A box of random area, shape and place.

    The share of the image's area is uniform in ``scale``, the logarithm of width over height uniform in ``ratio``'s,
    the place uniform. A box that does not fit is drawn again; when none fits, the largest central one of an allowed
    shape is taken.

    Args:
        numbers: (ATTEMPTS * 4,) uniform in [0, 1).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    numbers = numbers.tolist()
    for attempt in range(ATTEMPTS):
        area, shape, across, down = numbers[4 * attempt : 4 * attempt + 4]
        area = width * height * (scale[0] + area * (scale[1] - scale[0]))
        shape = math.exp(low + shape * (high - low))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return Crop(left, top, w, h, size, isolated=True)
    w, h = width, height
    if width / height < ratio[0]:
        h = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        w = max(round(height * ratio[1]), 1)
    return Crop((width - w) // 2, (height - h) // 2, w, h, size, isolated=True)


def shifted(width: int, height: int, numbers: Tensor, size: int, most: int) -> Crop:
    """Everything, squeezed into a square, which is then moved by up to ``most`` pixels each way.

    On images of this size it is torchvision's ``RandomCrop(size, padding=most)``.

    Args:
        numbers: at least 2, uniform in [0, 1).
    """
    right, down = (int(number * (2 * most + 1)) - most for number in numbers[:2].tolist())
    return Crop(0, 0, width, height, size, right=right, down=down)


def centre_crop(width: int, height: int, size: int, up_to: int = EVAL_SHARE_UP_TO) -> Crop:
    """The middle of the image resized so that its shorter side shows EVAL_SHARE of itself in ``size`` pixels.

    Above ``up_to`` pixels the shorter side shows whole.
    """
    share = EVAL_SHARE if size <= up_to else 1.0
    shorter = int(size / share)
    # the longer side is rounded down, so the two may be scaled a little differently
    across = shorter if width <= height else int(shorter * width / height)
    down = shorter if height <= width else int(shorter * height / width)
    left, top = round((across - size) / 2.0), round((down - size) / 2.0)
    x, y = width / across, height / down
    return Crop(left * x, top * y, size * x, size * y, size)


def whole(width: int, height: int, size: int) -> Crop:
    """Everything, squeezed into a square, bilinear as in fairseq's ``no_transform``."""
    return Crop(0, 0, width, height, size, bicubic=False)


class CropRule:
    """How a dataset crops.

    Args:
        size: side of the result.
        beit: smaller crops, as BEiT and data2vec 1.0 take them.
        plain: no crop, the whole image.
        shift: no crop, but in training the whole image is moved by up to so many pixels.
        training: random crops; otherwise the middle (or, with ``plain`` or ``shift``, the whole).
        share_up_to: see centre_crop.
    """

    def __init__(
        self,
        size: int,
        *,
        beit: bool = False,
        plain: bool = False,
        shift: int = 0,
        training: bool = True,
        share_up_to: int = EVAL_SHARE_UP_TO,
    ):
        self.size = size
        self.shift = shift if training else 0
        self.plain = plain or (shift > 0 and not training)
        self.random = training and not plain
        self.scale = BEIT_SCALE if beit else MAE_SCALE
        self.share_up_to = share_up_to

    def numbers(self, seed: int, epoch: int, ids: Sequence[int]) -> list[Tensor | None]:
        """What each sample's crop is made of; None where nothing is random."""
        if not self.random:
            return [None] * len(ids)
        return list(SampleDraws(seed, epoch, ids).uniform("image.crop", 4 * ATTEMPTS))

    def chooser(self, numbers: Tensor | None = None) -> Callable[[int, int], Crop]:
        """A function of width and height, from a sample's ``numbers``."""
        if self.plain:
            return partial(whole, size=self.size)
        if not self.random:
            return partial(centre_crop, size=self.size, up_to=self.share_up_to)
        if self.shift:
            return partial(shifted, numbers=numbers, size=self.size, most=self.shift)
        return partial(random_crop, numbers=numbers, size=self.size, scale=self.scale)

    def __str__(self) -> str:
        if self.plain:
            return f"the whole image at {self.size} x {self.size}"
        if not self.random:
            return f"centre crop at {self.size} x {self.size}"
        if self.shift:
            return f"the whole image at {self.size} x {self.size}, moved by up to {self.shift} pixels"
        return f"random crop of {self.scale[0]:g} to {self.scale[1]:g} of the area at {self.size} x {self.size}"
