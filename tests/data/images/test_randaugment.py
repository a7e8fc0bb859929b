"""RandAugment's operations against Pillow's, and what is drawn."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from d2v_plugin.data.images.randaugment import (
    AFFINE,
    OPERATIONS,
    RandAugment,
    apply_operations,
    auto_contrast,
)
from d2v_plugin.method.masking import SampleDraws

FILL = (0.5, 0.25, 0.75)
FILL_LEVELS = tuple(round(255 * value) for value in FILL)
SIZE = 32


def pictures(count=4):
    """Levels over 255, smooth with some noise, of less than the full range."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    waves = [np.sin(x / 5 + n) + np.cos(y / (4 + c)) for n in range(count) for c in range(3)]
    levels = 120 + 35 * np.stack(waves).reshape(count, 3, SIZE, SIZE) + rng.normal(0, 3, (count, 3, SIZE, SIZE))
    return torch.from_numpy(levels.round().clip(0, 255)).float() / 255


def as_image(tensor):
    return Image.fromarray((tensor * 255).round().byte().permute(1, 2, 0).numpy())


def apply(name, images, strength, sign=1.0):
    B = len(images)
    number = OPERATIONS.index(name)
    return apply_operations(images, [number] * B, torch.full((B,), strength), torch.full((B,), sign), FILL)


def solarize_add(image, added):
    return image.point(lambda level: min(255, level + added) if level < 128 else level)


def enhanced(kind):
    return lambda image, s, sign: kind(image).enhance(max(0.1, 1 + sign * 0.9 * s))


PILLOW = {
    "auto_contrast": lambda image, s, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, s, sign: ImageOps.equalize(image),
    "invert": lambda image, s, sign: ImageOps.invert(image),
    "posterize": lambda image, s, sign: ImageOps.posterize(image, 4 - int(4 * s)),
    "solarize": lambda image, s, sign: ImageOps.solarize(image, 256 - int(256 * s)),
    "solarize_add": lambda image, s, sign: solarize_add(image, int(110 * s)),
    "saturation": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "brightness": enhanced(ImageEnhance.Brightness),
    "sharpness": enhanced(ImageEnhance.Sharpness),
}
# Levels by which rounding may differ: once to 8 bits, the mean grey to a level times up to 0.9, and for sharpness the
# blurred image to a level, too.
OFF = {"saturation": 1, "contrast": 2, "brightness": 1, "sharpness": 2}


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("strength", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_colours_equal_pillow(name, strength, sign):
    images = pictures()
    ours = (apply(name, images, strength, sign) * 255).round()
    for row, image in enumerate(images):
        theirs = np.asarray(PILLOW[name](as_image(image), strength, sign))
        difference = np.abs(ours[row].permute(1, 2, 0).numpy() - theirs)
        assert difference.max() <= OFF.get(name, 0), name


def affine(name, amount):
    """The six numbers of Pillow's AFFINE transform."""
    if name == "rotate":
        angle = math.radians(30 * amount)
        cos, sin, middle = math.cos(angle), math.sin(angle), SIZE / 2
        return cos, -sin, middle - cos * middle + sin * middle, sin, cos, middle - sin * middle - cos * middle
    move = 0.45 * amount * SIZE
    return {
        "shear_x": (1, 0.3 * amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * amount, 1, 0),
        "translate_x": (1, 0, move, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, move),
    }[name]


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("amount", [0.9, -0.37])
def test_places_equal_pillow(name, amount):
    images = pictures(1)
    ours = (apply(name, images, abs(amount), math.copysign(1, amount))[0] * 255).round().permute(1, 2, 0).numpy()
    matrix = affine(name, amount)
    size = (SIZE, SIZE)
    bicubic = Image.Resampling.BICUBIC
    theirs = as_image(images[0]).transform(size, Image.Transform.AFFINE, matrix, bicubic, fillcolor=FILL_LEVELS)
    a, b, c, d, e, f = matrix
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    # Near the border, where the cubic reaches over it, one blends with the fill and the other does not.
    inside = (from_x > 2) & (from_x < SIZE - 2) & (from_y > 2) & (from_y < SIZE - 2)
    outside = (from_x < -1.5) | (from_x > SIZE + 1.5) | (from_y < -1.5) | (from_y > SIZE + 1.5)
    assert inside.sum() > SIZE * SIZE / 3 and outside.sum() > 10
    difference = np.abs(ours - np.asarray(theirs))[inside]
    # two levels, and half of one on average: the cubics' coefficients differ
    assert difference.max() <= 2 and difference.mean() < 0.7
    assert np.abs(ours[outside] - FILL_LEVELS).max() <= 1


def test_rotation_keeps_the_middle_and_pillows_direction_is_one_of_the_two():
    images = pictures(1)
    turned = [apply("rotate", images, 1.0, sign)[0] for sign in (1.0, -1.0)]
    theirs = as_image(images[0]).rotate(30, Image.Resampling.BICUBIC)
    middle = slice(SIZE // 2 - 6, SIZE // 2 + 6)
    differences = [
        np.abs((each * 255).permute(1, 2, 0).numpy() - np.asarray(theirs))[middle, middle].max() for each in turned
    ]
    assert min(differences) <= 2 < max(differences)


def test_pictures_of_one_level():
    flat = torch.full((2, 3, 8, 8), 77 / 255)
    assert torch.equal(auto_contrast(flat * 255), flat * 255)
    for name in ("auto_contrast", "equalize", "contrast", "saturation", "sharpness"):
        assert (apply(name, flat, 0.9) * 255).round().unique().tolist() == [77.0]


def test_every_level_comes_out_of_doing_nothing():
    levels = torch.arange(256).float().view(1, 1, 16, 16).expand(1, 3, 16, 16) / 255
    for name in ("posterize", "brightness", "solarize", "solarize_add"):
        strength = 0.0
        expected = levels if name != "posterize" else (levels * 255 / 16 + 1e-3).floor() * 16 / 255
        assert torch.allclose(apply(name, levels, strength), expected, atol=1e-6), name


def test_each_picture_goes_through_its_own():
    images = pictures(len(OPERATIONS) + 1)
    B = len(images)
    numbers = [*range(len(OPERATIONS)), -1]
    strength, sign = torch.linspace(0.5, 0.9, B), torch.ones(B)
    together = apply_operations(images, numbers, strength, sign, FILL)
    for row, number in enumerate(numbers):
        alone = apply_operations(images[row : row + 1], [number], strength[row : row + 1], sign[row : row + 1], FILL)
        assert torch.equal(together[row], alone[0])
    assert torch.equal(together[-1], images[-1])


def test_what_is_drawn():
    policy = RandAugment()
    draws = SampleDraws(1, 1, list(range(9000)))
    operation, strength, sign = policy.draw(draws, 0)
    counts = np.bincount(np.array(operation) + 1, minlength=16)
    assert abs(counts[0] / 9000 - 0.5) < 0.02
    assert abs(counts[1:] / 9000 - 0.5 / 15).max() < 0.008
    assert 0.89 < float(strength.mean()) < 0.9 and abs(float(strength.std()) - 0.047) < 0.005
    assert float(strength.max()) == 1.0 and abs(float(sign.mean())) < 0.04
    second, _, _ = policy.draw(draws, 1)
    assert abs(np.mean(np.array(second) == np.array(operation)) - (0.25 + 0.25 / 15)) < 0.03
    exact = RandAugment(noise=0.0, prob=1.0, magnitude=5).draw(draws, 0)
    assert min(exact[0]) == 0 and torch.allclose(exact[1], torch.tensor(0.5, dtype=torch.float64))


def test_output_is_levels_in_range():
    images = pictures(64)
    result = RandAugment(prob=1.0)(images, SampleDraws(1, 1, list(range(64))), FILL)
    assert result.min() >= 0 and result.max() <= 1
    assert torch.allclose(result * 255, (result * 255).round(), atol=1e-3)
    assert not torch.equal(result, images)
