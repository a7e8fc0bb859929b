"""Decoding: every kind of image becomes RGB as it should look, and broken ones are told apart."""

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from d2v_plugin.data.images.geometry import Crop, whole
from d2v_plugin.data.images.io import KINDS, MAX_PIXELS, ImageError, decode, to_rgb


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photo(width=64, height=48):
    """Smooth in both directions, so that JPEG and resizing change little."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 / width, y * 255 / height, 255 - x * 127 / width - y * 127 / height)
    return Image.fromarray(np.stack(channels, 2).astype(np.uint8))


def everything(size):
    return lambda width, height: whole(width, height, size)


def untouched(width, height):
    """A crop that changes nothing, for square images."""
    return Crop(0, 0, width, height, width, isolated=True)


def test_rgb_is_read_as_it_was_written():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for form in ("PNG", "BMP", "PPM", "TIFF", "WEBP"):
        options = {"lossless": True} if form == "WEBP" else {}
        read = decode(encoded(Image.fromarray(pixels), form, **options), "x", untouched)
        assert read.dtype == np.uint8 and np.array_equal(read, pixels), form


def test_crop_then_resize_equals_pillow():
    image = photo()
    crop = Crop(5, 7, 30, 20, 16, isolated=True)
    expected = image.crop((5, 7, 35, 27)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(decode(encoded(image, "PNG"), "x", lambda *_: crop), np.asarray(expected))
    expected = image.resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(encoded(image, "PNG"), "x", everything(16)), np.asarray(expected))


def test_grey_and_bilevel():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    read = decode(encoded(Image.fromarray(levels), "PNG"), "x", untouched)
    assert np.array_equal(read, np.repeat(levels[:, :, None], 3, 2))
    bits = Image.fromarray(levels > 100).convert("1")
    assert set(np.unique(decode(encoded(bits, "PNG"), "x", untouched))) == {0, 255}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled(form):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    if form == "PPM":  # which older Pillows read but do not write
        data = b"P5 16 16 65535\n" + values.astype(">u2").tobytes()
    else:
        data = encoded(Image.fromarray(values), form)
    read = decode(data, "x", untouched)
    assert np.array_equal(read[:, :, 0], np.round(values / 257).astype(np.uint8))
    assert read.min() == 0 and read.max() == 255 and len(np.unique(read)) > 250


def test_numbers_without_a_range_are_refused():
    floats = Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    integers = Image.fromarray(np.array([[0, 70000], [1, 2]], dtype=np.int32))
    for image in (floats, integers):
        with pytest.raises(ImageError, match="convert it to 8 or 16 bits") as caught:
            decode(encoded(image, "TIFF"), "x", untouched)
        assert caught.value.kind == "unsupported pixels"


def test_cmyk_jpeg():
    image = photo().convert("CMYK")
    read = decode(encoded(image, "JPEG", quality=95), "x", everything(16))
    expected = np.asarray(photo().resize((16, 16), Image.Resampling.BILINEAR))
    assert np.abs(read.astype(int) - expected).mean() < 4


def test_transparency_is_laid_on_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 0, 0, 255)
    rgba[0, 1] = (0, 0, 0, 0)
    rgba[1, 0] = (0, 0, 0, 128)
    read = decode(encoded(Image.fromarray(rgba), "PNG"), "x", untouched)
    assert read[0, 0].tolist() == [200, 0, 0]
    assert read[0, 1].tolist() == [255, 255, 255] and read[1, 0].tolist() == [127, 127, 127]


def test_palette_with_and_without_transparency():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    read = decode(encoded(image, "PNG"), "x", untouched)
    assert read.tolist() == [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    for transparency in (1, bytes([255, 0, 255])):
        read = decode(encoded(image, "PNG", transparency=transparency), "x", untouched)
        assert read.tolist() == [[[10, 20, 30], [255, 255, 255]], [[70, 80, 90], [255, 255, 255]]]
    grey = Image.fromarray(np.array([[7, 9], [9, 7]], np.uint8))
    read = decode(encoded(grey, "PNG", transparency=9), "x", untouched)
    assert read[:, :, 0].tolist() == [[7, 255], [255, 7]]


def test_every_mode_becomes_rgb():
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA", "I", "I;16", "I;16B"):
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB", mode


def test_first_of_several_frames():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, "x", untouched)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("orient", "corner"), [(False, [255, 0, 0]), (True, [0, 0, 255])])
def test_orientation_is_ignored_unless_asked_for(orient, corner):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = (255, 0, 0)
    pixels[:, 4:] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 8  # turn a quarter to the left
    seen = []

    def choose(width, height):
        seen.append((width, height))
        return Crop(0, 0, width, height, 8, isolated=True)

    read = decode(encoded(Image.fromarray(pixels), "PNG", exif=exif), "x", choose, orient=orient)
    assert seen == [(4, 8) if orient else (8, 4)]
    assert read[0, 0].tolist() == corner


def test_one_pixel():
    read = decode(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), "x", everything(8))
    assert read.shape == (8, 8, 3) and (read == (1, 2, 3)).all()


@pytest.mark.parametrize("isolated", [True, False])
def test_large_jpegs_are_decoded_at_reduced_size(isolated, monkeypatch):
    """Only as far as leaves two pixels for one, and the result is that of the whole image."""
    image = photo(1001, 803)
    data = encoded(image, "JPEG", quality=95)
    decoded = []
    plain = Image.Image.resize

    def resize(self, *args, **kwargs):
        decoded.append(self.size)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for size, expected in ((32, (126, 101)), (60, (251, 201)), (150, (501, 402))):
        crop = Crop(100, 80, 700, 700, size, isolated=isolated)
        read = decode(data, "x", lambda *_, crop=crop: crop)
        assert decoded.pop() == expected
        whole_picture = Image.open(io.BytesIO(data)).crop((100, 80, 800, 780))
        full = plain(whole_picture, (size, size), Image.Resampling.BICUBIC)
        assert np.abs(read.astype(int) - np.asarray(full)).max() <= 4
    # not enough to spare
    crop = Crop(100, 80, 700, 700, 400, isolated=isolated)
    decode(data, "x", lambda *_: crop)
    assert decoded.pop() == ((700, 700) if isolated else (1001, 803))


def test_a_crop_at_the_edge_of_a_reduced_jpeg():
    image = photo(1001, 803)
    crop = Crop(501, 303, 500, 500, 20, isolated=True)
    read = decode(encoded(image, "JPEG", quality=95), "x", lambda *_: crop)
    full = image.crop((501, 303, 1001, 803)).resize((20, 20), Image.Resampling.BICUBIC)
    assert np.abs(read.astype(int) - np.asarray(full)).max() <= 6


def header_of_a_huge_png(width, height):
    """A PNG that says it is huge and holds nothing."""
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_huge_pictures_are_refused_before_they_are_decoded():
    with pytest.raises(ImageError, match="40000 x 30000 pixels, more than") as caught:
        decode(header_of_a_huge_png(40000, 30000), "x", everything(8))
    assert caught.value.kind == "too large"
    # the limit is on what is decoded, and a JPEG's reduced size may be below it
    data = encoded(photo(640, 480), "JPEG")
    with pytest.raises(ImageError, match="task.max_image_pixels"):
        decode(data, "x", everything(300), max_pixels=100_000)
    assert decode(data, "x", everything(32), max_pixels=100_000).shape == (32, 32, 3)
    # Pillow's own limit is back in its place
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_threads_leave_pillow_as_it_was():
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    pictures = [encoded(photo(), "JPEG"), b"no image"] * 100
    inside = []

    def read(data):
        def choose(width, height):
            inside.append(Image.MAX_IMAGE_PIXELS)
            return whole(width, height, 8)

        try:
            decode(data, "x", choose)
        except ImageError:
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, pictures))
    assert inside == [None] * 100
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before and before[0] is not None


def test_broken_bytes_are_told_apart():
    jpeg, png = encoded(photo(), "JPEG"), encoded(photo(), "PNG")
    cases = {
        "empty": b"",
        "not an image": b"<html>not found</html>",
        "truncated or corrupt": jpeg[: len(jpeg) // 2],
    }
    for kind, data in cases.items():
        with pytest.raises(ImageError) as caught:
            decode(data, "some/where.jpg", everything(8))
        assert caught.value.kind == kind and kind in KINDS
        assert str(caught.value).startswith("some/where.jpg: ") and "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="truncated or corrupt"):
        decode(png[: len(png) // 2], "x", everything(8))


def test_postscript_under_another_name_is_not_run():
    with pytest.raises(ImageError, match="not an image"):
        decode(encoded(photo(), "EPS"), "x.jpg", everything(8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_no_broken_byte_raises_anything_else(form):
    """Bytes turned at random: what comes out is an image or an ImageError."""
    rng = np.random.default_rng(0)
    data = np.frombuffer(encoded(photo(24, 20), form), np.uint8)
    failed = 0
    for _ in range(60):
        broken = data.copy()
        places = rng.integers(0, min(len(data), 400), 6)
        broken[places] = rng.integers(0, 256, len(places))
        try:
            assert decode(broken.tobytes(), "x", everything(8), max_pixels=10**6).shape == (8, 8, 3)
        except ImageError as error:
            failed += 1
            assert error.kind in KINDS
    assert failed > 0 or form == "BMP"


def test_what_choose_raises_is_not_taken_for_a_bad_file():
    def choose(width, height):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        decode(encoded(photo(), "PNG"), "x", choose)
