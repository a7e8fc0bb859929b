"""Augmentation on the device: flip, colours, normalisation, erasing and mixing, against plain references."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from d2v_plugin.data.images.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, BatchAugment
from d2v_plugin.data.images.colour import colour_jitter
from d2v_plugin.data.images.erase import RandomErase, inside_boxes
from d2v_plugin.data.images.mixing import Mixing
from d2v_plugin.data.images.randaugment import RandAugment
from d2v_plugin.errors import UserError
from d2v_plugin.method.masking import SampleDraws

FULL = AugmentConfig(
    jitter=0.4, jitter_target=True, randaugment=RandAugment(), erase=RandomErase(prob=1.0), mixing=Mixing(classes=10)
)


def batch_of(B=6, size=24, seed=0):
    return torch.randint(0, 256, (B, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def as_image(tensor):
    """(3, H, W) in [0, 1] -> Pillow image."""
    return Image.fromarray((tensor * 255).round().byte().permute(1, 2, 0).numpy())


def normalised(images):
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (images.double() / 255 - mean) / std


def test_without_anything_random_it_is_normalisation():
    images = batch_of()
    plain = BatchAugment(FULL).plain(images)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain.double(), normalised(images), rtol=0, atol=1e-6)
    assert torch.equal(BatchAugment(FULL).plain(images, torch.float16), plain.half())
    source, target = BatchAugment(AugmentConfig(flip=0.0))(images, range(6), 1)
    assert target is None and torch.equal(source, plain)
    other = BatchAugment(AugmentConfig(mean=(0.5,) * 3, std=(0.5,) * 3)).plain(images)
    torch.testing.assert_close(other, images.float() / 127.5 - 1, rtol=0, atol=1e-6)


def test_half_are_flipped_and_the_input_stays():
    images = batch_of(400, 4)
    before = images.clone()
    source, _ = BatchAugment(AugmentConfig())(images, range(400), 1)
    assert torch.equal(images, before)
    plain = normalised(images).float()
    flipped = torch.isclose(source, plain.flip(-1), atol=1e-5).flatten(1).all(1)
    kept = torch.isclose(source, plain, atol=1e-5).flatten(1).all(1)
    assert (flipped ^ kept).all() and 160 < int(flipped.sum()) < 240


@pytest.mark.parametrize("config", [AugmentConfig(), AugmentConfig(jitter=0.4, jitter_target=True), FULL])
def test_a_sample_is_treated_alike_in_any_batch(config):
    images, ids = batch_of(8), [3, 100, 7, 12, 55, 2**40, 9, 1]
    augment = BatchAugment(config, seed=5)
    together = augment(images, ids, 2)
    for rows in ([4, 0, 6], [2]):
        apart = augment(images[rows], [ids[row] for row in rows], 2)
        for a, b in zip(apart, together, strict=True):
            assert (a is None and b is None) or torch.equal(a, b[rows])
    assert not torch.equal(augment(images, ids, 3)[0], together[0])
    assert not torch.equal(BatchAugment(config, seed=6)(images, ids, 2)[0], together[0])
    torch.manual_seed(123)  # torch's own generator has no part in it
    assert torch.equal(augment(images, ids, 2)[0], together[0])


def test_source_and_target_are_one_crop_in_two_jitters():
    # levels that stay clear of black and white
    grey = torch.randint(80, 141, (4, 1, 8, 8), dtype=torch.uint8).expand(-1, 3, -1, -1)
    source, target = BatchAugment(AugmentConfig(jitter=0.4, jitter_target=True))(grey, range(4), 1)
    for a, b in zip(source, target, strict=True):
        # brightness and contrast are increasing, so both have the pixels in one order, flipped alike
        assert torch.equal(a[0].flatten().argsort(stable=True), b[0].flatten().argsort(stable=True))
        assert not torch.allclose(a, b, atol=0.01)


# -- colours -------------------------------------------------------------------------------------

CHANGES = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@pytest.mark.parametrize("change", [0, 1, 2])
def test_each_change_equals_pillows(change):
    images = (torch.rand(6, 3, 16, 16) * 255).round() / 255
    factors = torch.ones(6, 3)
    factors[:, change] = torch.linspace(0.6, 1.4, 6)
    ours = colour_jitter(images, factors, torch.tensor([[2, 0, 1]]).expand(6, 3))
    for row in range(6):
        image = CHANGES[change](as_image(images[row])).enhance(float(factors[row, change]))
        theirs = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        difference = ours[row] * 255 - theirs
        # Pillow cuts the result off to 8 bits, and rounds the grey, which counts at most 0.4 times.
        assert -0.21 <= difference.min() and difference.max() < 1.21


def test_colour_jitter_equals_kornia():
    from kornia import enhance

    images, factors = torch.rand(5, 3, 9, 9), torch.rand(5, 3) * 0.8 + 0.6
    steps = (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
    )
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        expected = images
        for change in order:
            expected = steps[change](expected, factors[:, change])
        ours = colour_jitter(images, factors, torch.tensor([order]).expand(5, 3))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_jitter_reaches_its_strength_and_every_order():
    draws = SampleDraws(1, 1, list(range(3000)))
    factors = 1 + 0.4 * (2 * draws.uniform("image.jitter.source", 3) - 1)
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() < 1.4
    orders = draws.uniform("image.jitter.source.order", 3).argsort(1)
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert len(counts) == 6 and counts.min() > 400


# -- erasing -------------------------------------------------------------------------------------


def test_boxes_to_erase():
    erase = RandomErase()
    boxes = erase.boxes(SampleDraws(1, 1, list(range(8000))), 224, 224)
    erased = boxes[boxes[:, 2] > 0].double()
    assert 0.23 < len(erased) / 8000 < 0.27
    share = erased[:, 2] * erased[:, 3] / 224**2
    assert 0.019 < share.min() < 0.025 and 0.32 < share.max() < 0.34
    assert abs(float(share.mean()) - (0.02 + 1 / 3) / 2) < 0.01
    shape = (erased[:, 2] / erased[:, 3]).log()
    # the tallest and widest do not fit when they are large, and are drawn again
    assert abs(float(shape.mean())) < 0.03 and 1.1 < float(shape.abs().max()) < 1.25
    assert (erased[:, :2] >= 0).all() and (erased[:, :2] + erased[:, 2:] <= 224).all()


def test_only_the_box_becomes_noise():
    images, ids = torch.full((200, 3, 40, 40), 9.0), list(range(200))
    erase = RandomErase(prob=0.5)
    result = erase(images, 1, 1, ids)
    boxes = erase.boxes(SampleDraws(1, 1, ids), 40, 40)
    inside = inside_boxes(boxes, 40, 40, torch.device("cpu"))
    assert inside.flatten(1).sum(1).tolist() == (boxes[:, 2] * boxes[:, 3]).tolist()
    assert torch.equal(result[~inside.expand_as(result)], images[~inside.expand_as(result)])
    noise = result[inside.expand_as(result)]
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02 and noise.isfinite().all()
    assert torch.equal(images, torch.full_like(images, 9.0))
    untouched = RandomErase(prob=0.0)(images, 1, 1, ids)
    assert torch.equal(untouched, images)


def test_noise_is_in_the_models_precision():
    result = RandomErase(prob=1.0)(torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), 1, 1, [1, 2])
    assert result.dtype == torch.bfloat16 and result.any()


def test_tiny_pictures_are_not_erased_away():
    assert torch.equal(RandomErase(prob=1.0)(torch.ones(2, 3, 1, 1), 1, 1, [1, 2]), torch.ones(2, 3, 1, 1))


# -- mixing --------------------------------------------------------------------------------------


def mixed(mixing, B=6, size=16, epoch=1):
    """Images that are their own number all over, and their labels; what became of them."""
    images = torch.arange(B).float().view(B, 1, 1, 1).expand(B, 3, size, size).clone()
    labels = torch.arange(B)
    return (*mixing(images, labels, 1, epoch, list(range(B))), *mixing.draw(1, epoch, list(range(B)), size, size))


def test_smoothed_labels():
    target = Mixing(classes=5, label_smoothing=0.1).smooth(torch.tensor([2, 0]))
    assert torch.allclose(target, torch.tensor([[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02]]))
    assert Mixing(classes=3, label_smoothing=0.0).smooth(torch.tensor([1])).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("which", ["mixup", "cutmix"])
def test_pictures_and_labels_are_mixed_alike(mode, which):
    B = 6
    options = {"mixup": 0.8, "cutmix": 0.0} if which == "mixup" else {"mixup": 0.0, "cutmix": 1.0}
    mixing = Mixing(classes=B, mode=mode, label_smoothing=0.0, **options)
    for epoch in range(1, 8):
        images, target, share, boxes, is_cut = mixed(mixing, B, epoch=epoch)
        assert is_cut.all() == (which == "cutmix") and torch.allclose(target.sum(1), torch.ones(B))
        own, other = torch.arange(B).float(), torch.arange(B).flip(0).float()
        # the mean of an image is the mean of its labels, since an image shows its label
        assert torch.allclose(images.mean((1, 2, 3)), share * own + (1 - share) * other, atol=1e-5)
        assert torch.allclose(target @ own, share * own + (1 - share) * other, atol=1e-5)
        for row in range(B):
            if which == "mixup":
                assert images[row].unique().numel() == 1
            else:
                top, left, height, width = boxes[row].tolist()
                assert (images[row, :, top : top + height, left : left + width] == other[row]).all()
                assert set(images[row].unique().tolist()) <= {float(own[row]), float(other[row])}
        if mode == "batch":
            assert share.unique().numel() == 1
        elif mode == "pair":
            assert torch.equal(share, share.flip(0))
        else:
            assert share.unique().numel() == B


def test_how_often_what_is_mixed():
    mixing = Mixing(classes=2, mixup=0.8, cutmix=1.0, prob=0.9, mode="elem")
    share, boxes, is_cut = mixing.draw(1, 1, list(range(6000)), 32, 32)
    assert 0.08 < float((share == 1).float().mean()) < 0.13  # cutmix's box may be empty
    assert abs(float(is_cut.float().mean()) - 0.45) < 0.02
    mixup = share[~is_cut & (share < 1)]
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))
    assert abs(float(mixup.mean()) - 0.5) < 0.02 and abs(float(mixup.var()) - 1 / (4 * 2.6)) < 0.005
    area = boxes[:, 2] * boxes[:, 3] / 32**2
    assert torch.allclose(share[is_cut], 1 - area[is_cut].float())


def test_off_and_wrong():
    images, labels = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 1])
    for off in (Mixing(classes=2, prob=0.0), Mixing(classes=2, mixup=0.0, cutmix=0.0)):
        result, target = off(images, labels, 1, 1, [1, 2, 3])
        assert torch.equal(result, images) and torch.equal(target, off.smooth(labels))
    with pytest.raises(UserError, match="mixup_mode must be one of batch, pair, elem, got 'half'"):
        Mixing(classes=2, mode="half")


def test_mixing_through_the_augmenter():
    augment = BatchAugment(FULL, seed=3)
    images, labels = torch.rand(4, 3, 8, 8).half(), torch.tensor([1, 2, 3, 4])
    result, target = augment.mix(images, labels, [7, 8, 9, 10], 2)
    assert result.dtype == torch.float16 and target.shape == (4, 10) and target.dtype == torch.float32
    assert torch.equal(result, augment.mix(images, labels, [7, 8, 9, 10], 2)[0])
