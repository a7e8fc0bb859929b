"""Crops: sizes and places as torchvision defines them, and the distributions they are drawn from."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from d2v_plugin.data.images.geometry import (
    ATTEMPTS,
    BEIT_SCALE,
    MAE_SCALE,
    RATIO,
    CropRule,
    centre_crop,
    random_crop,
    whole,
)
from d2v_plugin.data.images.io import _cut
from d2v_plugin.method.masking import SampleDraws


def crops(width, height, count, scale=MAE_SCALE, size=32):
    draws = SampleDraws(1, 1, list(range(count))).uniform("image.crop", 4 * ATTEMPTS)
    return [random_crop(width, height, numbers, size, scale) for numbers in draws]


@pytest.mark.parametrize("scale", [MAE_SCALE, BEIT_SCALE])
def test_areas_shapes_and_places_are_uniform(scale):
    width = height = 2000
    found = crops(width, height, 4000, scale)
    areas = np.array([crop.width * crop.height for crop in found]) / (width * height)
    shapes = np.log([crop.width / crop.height for crop in found])
    assert scale[0] * 0.99 <= areas.min() and areas.max() <= 1
    assert abs(shapes).max() <= math.log(RATIO[1]) + 2e-3
    # Boxes of more than three quarters may not fit and are drawn again, so look below that.
    small = np.sort(areas[areas < 0.7])
    even = np.linspace(scale[0], 0.7, len(small))
    assert abs(small - even).max() < 0.02 * (0.7 - scale[0]) + 0.01
    # Seen over the small ones, shapes are uniform on a logarithmic scale, and places over what is left.
    few = [crop for crop in found if crop.width * crop.height < 0.5 * width * height]
    shapes = np.sort(np.log([crop.width / crop.height for crop in few]))
    even = np.linspace(-math.log(RATIO[1]), math.log(RATIO[1]), len(shapes))
    assert abs(shapes - even).max() < 0.04
    for place, room in (("left", "width"), ("top", "height")):
        places = np.sort([getattr(crop, place) / (2000 - getattr(crop, room)) for crop in few])
        assert abs(places - np.linspace(0, 1, len(places))).max() < 0.05


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (3, 2), (640, 480)])
def test_every_crop_lies_inside_and_is_whole_pixels(width, height):
    for crop in crops(width, height, 200):
        assert crop.isolated and all(float(edge).is_integer() for edge in crop.box)
        assert crop.left >= 0 and crop.top >= 0 and crop.width >= 1 and crop.height >= 1
        assert crop.box[2] <= width and crop.box[3] <= height


def test_when_nothing_fits_the_middle_is_taken():
    crop = random_crop(1000, 10, torch.full((4 * ATTEMPTS,), 0.9), 32, (0.2, 1.0))
    assert crop.box == (493, 0, 506, 10)
    crop = random_crop(10, 1000, torch.full((4 * ATTEMPTS,), 0.9), 32, (0.2, 1.0))
    assert crop.box == (0, 493, 10, 506)


def test_last_places_are_reached():
    numbers = torch.zeros(4 * ATTEMPTS)
    numbers[2:4] = 1 - 2**-24
    crop = random_crop(100, 80, numbers, 32, (0.2, 1.0))
    assert crop.box[2:] == (100, 80)


def resize_then_centre(image, size):
    """torchvision's Resize of the shorter side and CenterCrop, on Pillow images."""
    shorter = int(size / (224 / 256)) if size <= 224 else size
    width, height = image.size
    if width <= height:
        resized = (shorter, int(shorter * height / width))
    else:
        resized = (int(shorter * width / height), shorter)
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 301), (50, 50), (8, 8), (1, 1), (1, 40), (333, 500)])
@pytest.mark.parametrize("size", [64, 224, 225])
def test_centre_crop_equals_resize_and_crop(width, height, size):
    rng = np.random.default_rng(0)
    # Levels that no bicubic weights carry past black or white. Pillow resizes in the order of axes that costs less and
    # rounds to 8 bits twice, the first error growing by the weights' absolute sum, 1.3: each result lies within 1.2
    # levels of the exact one.
    image = Image.fromarray(rng.integers(80, 176, (height, width, 3), dtype=np.uint8))
    ours = np.asarray(_cut(image, centre_crop(width, height, size), 1, "x"), dtype=int)
    assert abs(ours - np.asarray(resize_then_centre(image, size), dtype=int)).max() <= 2


def test_rules():
    rule = CropRule(32)
    (numbers,) = rule.numbers(1, 1, [5])
    assert rule.random and rule.chooser(numbers)(100, 80) == crops(100, 80, 6)[5]
    assert CropRule(32, beit=True).chooser(numbers)(100, 80) == crops(100, 80, 6, BEIT_SCALE)[5]
    assert not CropRule(32, training=False).random
    assert CropRule(32, training=False).numbers(1, 1, [5, 6]) == [None, None]
    assert CropRule(32, training=False).chooser()(100, 80) == centre_crop(100, 80, 32)
    for training in (True, False):
        rule = CropRule(32, plain=True, beit=True, training=training)
        assert not rule.random and rule.chooser()(100, 80) == whole(100, 80, 32)
    assert "20" not in str(CropRule(64, beit=True)) and "0.08 to 1" in str(CropRule(64, beit=True))


def test_images_are_moved_by_up_to_so_many_pixels():
    rule = CropRule(32, shift=4)
    moves = []
    for numbers in rule.numbers(1, 1, list(range(2000))):
        crop = rule.chooser(numbers)(20, 10)
        assert crop.box == (0, 0, 20, 10) and crop.size == 32
        moves.append((crop.right, crop.down))
    counts = Counter(moves)
    assert len(counts) == 81 and max(abs(move) for pair in counts for move in pair) == 4
    assert 8 <= min(counts.values()) <= max(counts.values()) <= 50
    still = CropRule(32, shift=4, training=False)
    assert still.plain and still.numbers(1, 1, [0]) == [None]


@pytest.mark.parametrize(("up_to", "share"), [(224, 1.0), (383, 224 / 256)])
def test_up_to_which_size_validation_cuts_the_border_off(up_to, share):
    crop = centre_crop(1000, 800, 288, up_to)
    assert crop.height == pytest.approx(800 * 288 / int(288 / share))
