"""The bytes of one image in, one square of RGB pixels out, or one line that says why not.

Pillow decodes. What is not plain 8-bit RGB becomes so:

* grey, palette, CMYK, YCbCr, HSV and Lab are converted;
* 16-bit grey is scaled, 65535 becoming 255 (Pillow's own conversion cuts everything above 255 off to white);
* transparent pixels are laid on white, also those of a palette;
* of several frames the first is taken.

The orientation that a camera wrote into the EXIF block is ignored, as fairseq ignores it, unless ``orient`` is set.
A JPEG much larger than what is needed of it is decoded at 1/2, 1/4 or 1/8 of its size, which its format does fast.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from d2v_plugin.data.images.geometry import Crop
from d2v_plugin.errors import UserError

KINDS = ("missing", "unreadable", "empty", "not an image", "truncated or corrupt", "too large", "unsupported pixels")
# Formats are named because Pillow would otherwise try all it knows, and EPS starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
# Pillow itself refuses images above this: twice the pixels of a quarter of a gigabyte, three bytes each.
MAX_PIXELS = 178_956_970
# An image decoded at reduced size still has at least this many pixels for one of the output, each way.
REDUCING_GAP = 2
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
ORIENTATION_TAG = 0x0112
BACKGROUND = (255, 255, 255, 255)


class ImageError(UserError):
    """An image that cannot be used; ``kind`` is one of KINDS."""

    def __init__(self, kind: str, source: object, detail: str):
        super().__init__(f"{source}: {kind}: {detail}")
        self.kind = kind


def decode(
    data: bytes,
    source: object,
    choose: Callable[[int, int], Crop],
    *,
    orient: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decode, crop and resize.

    Args:
        data: the file's bytes.
        source: what they were read from, for messages.
        choose: picks the crop, given width and height.
        orient: turn the image as its EXIF block says.
        max_pixels: of what is decoded; a JPEG that need not be decoded whole may be larger.
    Returns:
        (crop.size, crop.size, 3) uint8.
    Raises:
        ImageError: one of KINDS but the first two.
    """
    if not data:
        raise ImageError("empty", source, "it holds no bytes; remove it or fetch it again")
    with _quiet:
        with _faults(source):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            turned = orient and image.getexif().get(ORIENTATION_TAG, 1) in range(5, 9)
            width, height = image.size
        crop = choose(*((height, width) if turned else (width, height)))
        with _faults(source):
            reduction = _reduce(image, crop)
            _check_size(image, source, max_pixels)
            image.load()
            if orient:
                image = ImageOps.exif_transpose(image)
            return _moved(np.array(_cut(image, crop, reduction, source)), crop.right, crop.down)


def to_rgb(image: Image.Image, source: object = "image") -> Image.Image:
    """8-bit RGB of whatever Pillow loaded; see the top of this file.

    Raises:
        ImageError: numbers whose range nothing tells: 32-bit integers above 65535, floats.
    """
    if image.mode in SIXTEEN_BITS:
        image = _sixteen_bits_to_grey(image, source)
    if image.mode == "F":
        raise ImageError("unsupported pixels", source, "floating point numbers; convert it to 8 or 16 bits")
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, BACKGROUND)
        white.alpha_composite(image)
        image = white
    return image if image.mode == "RGB" else image.convert("RGB")


def _sixteen_bits_to_grey(image: Image.Image, source: object) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode == "I" and not (pixels.min() >= 0 and pixels.max() <= 65535):
        detail = f"integers from {pixels.min()} to {pixels.max()}; convert it to 8 or 16 bits"
        raise ImageError("unsupported pixels", source, detail)
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _reduce(image: Image.Image, crop: Crop) -> int:
    """Let a JPEG decode at 1/2, 1/4 or 1/8 where the crop has pixels to spare; returns 1, 2, 4 or 8."""
    if image.format not in ("JPEG", "MPO"):
        return 1
    spare = min(crop.width, crop.height) / (crop.size * REDUCING_GAP)
    reduction = next((factor for factor in (8, 4, 2) if factor <= spare), 1)
    width, height = image.size
    if reduction > 1 and image.draft(None, (width // reduction, height // reduction)) is not None:
        return reduction
    return 1


def _check_size(image: Image.Image, source: object, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        detail = f"{width} x {height} pixels, more than {max_pixels}; shrink it, or raise task.max_image_pixels"
        raise ImageError("too large", source, detail)


def _cut(image: Image.Image, crop: Crop, reduction: int, source: object) -> Image.Image:
    left, top, right, bottom = crop.box
    if crop.isolated and reduction == 1:
        if image.mode in SIXTEEN_BITS:
            image = to_rgb(image, source)
        image = to_rgb(image.crop((int(left), int(top), int(right), int(bottom))), source)
        box = None
    else:
        image = to_rgb(image, source)
        # the last of its rows and columns may stand for fewer than ``reduction`` of the original's
        limits = (*image.size, *image.size)
        box = tuple(min(edge / reduction, limit) for edge, limit in zip(crop.box, limits, strict=True))
    how = Image.Resampling.BICUBIC if crop.bicubic else Image.Resampling.BILINEAR
    return image.resize((crop.size, crop.size), how, box=box)


def _moved(pixels: np.ndarray, right: int, down: int) -> np.ndarray:
    """(S, S, 3) moved by less than S pixels; black comes in."""
    if right == down == 0:
        return pixels
    height, width = pixels.shape[:2]
    result = np.zeros_like(pixels)
    kept = pixels[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    top, left = max(down, 0), max(right, 0)
    result[top : top + kept.shape[0], left : left + kept.shape[1]] = kept
    return result


@contextlib.contextmanager
def _faults(source: object) -> Iterator[None]:
    """Turn whatever broken bytes make Pillow raise into an ImageError.

    Its parsers check little: a bad file may end in OSError, SyntaxError, struct.error, KeyError or anything else.
    """
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ImageError("not an image", source, f"its bytes begin as none of {formats}; remove it") from None
    except MemoryError:
        raise ImageError("too large", source, "there is not enough memory to decode it; shrink it") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError("truncated or corrupt", source, f"{reason}; fetch it again or remove it") from None


class _Quiet(contextlib.AbstractContextManager):
    """Without Pillow's warnings about faults it gets over, and without its limit, in whose place ours stands.

    Both are the whole process's, so the first of several threads to come switches them off, and the last to leave
    switches them on again.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self._warnings = warnings.catch_warnings()
                self._warnings.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._warnings.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self._limit


_quiet = _Quiet()
