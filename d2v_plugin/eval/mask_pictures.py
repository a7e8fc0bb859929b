"""What the student does not see: masks over an image, over tokens, and beside a spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from d2v_plugin.data.text.token_masks import TokenMasks
from d2v_plugin.eval.plots import import_pyplot, save
from d2v_plugin.eval.spectrogram import draw_spectrogram
from d2v_plugin.method.masking import BeitMasks, SampleDraws

# what is hidden is drawn in this colour in every picture
HIDDEN = "#b7d7ea"
HIDDEN_RGB = np.array([0xB7, 0xD7, 0xEA], dtype=np.uint8)
FEWEST_PIXELS = 160  # sides of an image that is drawn


def draw_masks(encoder, length: int, samples: int, clones: int, seed: int = 1) -> np.ndarray:
    """Masks as pre-training draws them, by the encoder's settings.

    Args:
        encoder: a modality's of 2.0, ``model.modality_encoders[...]``; or the ``BeitMasks`` or ``TokenMasks`` of 1.0.
        length: T, positions of each sample.
        clones: M, masks of each sample.
    Returns:
        (samples, M, T) bool, True = hidden from the student.
    """
    if isinstance(encoder, TokenMasks):
        # one mask an epoch
        nothing, masks = np.zeros(length, np.int64), replace(encoder, seed=seed)
        return np.array([[masks(nothing, epoch, sample)[1] for epoch in range(clones)] for sample in range(samples)])
    draws = SampleDraws(seed, 0, list(range(samples)), clones)
    mask = encoder.draw(draws) if isinstance(encoder, BeitMasks) else encoder.draw_mask(draws, length, None)[0]
    return mask.view(samples, clones, length).cpu().numpy()


def cover(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with its masked patches painted over.

    Args:
        image: (S, S, 3) uint8, S a multiple of the patches along a side.
        mask: (N,) bool of square number N, row by row, True = hidden.
    Raises:
        ValueError: patches that do not divide the image.
    """
    side = round(len(mask) ** 0.5)
    if side**2 != len(mask) or image.shape[0] != image.shape[1] or image.shape[0] % side:
        raise ValueError(f"{len(mask)} patches do not tile an image of {image.shape[0]} x {image.shape[1]} pixels")
    hidden = np.kron(np.asarray(mask, bool).reshape(side, side), np.ones([image.shape[0] // side] * 2, bool))
    return np.where(hidden[..., None], HIDDEN_RGB, image)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """(S, S, 3) with whole pixels repeated, so that a small image is not blurred by the viewer."""
    return np.kron(image, np.ones((max(1, FEWEST_PIXELS // image.shape[0]),) * 2 + (1,), np.uint8))


def plot_image_masks(images: Sequence[np.ndarray], masks: Sequence[np.ndarray], out: Path, title: str = "") -> Path:
    """One row an image: the whole of it, which the teacher sees, and what each mask leaves the student.

    Args:
        images: (S, S, 3) uint8 each.
        masks: (M, N) bool for each image, see :func:`cover`.
        out: PNG to write.
    """
    pyplot = import_pyplot()
    rows, columns = len(images), 1 + len(masks[0])
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(1.15 * columns, 1.15 * rows + 0.75), layout="constrained", squeeze=False
    )
    for line, image, clones in zip(axes, images, masks, strict=True):
        for axis, picture in zip(line, [image, *(cover(image, mask) for mask in clones)], strict=True):
            axis.imshow(_enlarged(picture), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_color("#888888")
    axes[0][0].set_title("teacher", fontsize=9)
    for number, axis in enumerate(axes[0][1:], 1):
        axis.set_title(f"mask {number}", fontsize=9)
    share = 100 * float(np.mean([np.mean(clones) for clones in masks]))
    figure.suptitle(_title(title, f"pale = masked, {share:.0f} % of patches"), x=0.01, ha="left", fontsize=10)
    return save(figure, out)


def plot_token_masks(tokens: Sequence[str], masks: np.ndarray, out: Path, title: str = "", width: int = 92) -> Path:
    """A text once for each mask, with the masked tokens painted over.

    Args:
        tokens: T pieces as they are to be read, blanks included.
        masks: (M, T) bool, True = hidden.
        width: characters a line.
    """
    pyplot = import_pyplot()
    lines = wrap(tokens, width)
    blocks = len(masks)
    height = 0.2 * (blocks * (len(lines) + 1)) + 0.45
    figure, axis = pyplot.subplots(figsize=(0.088 * width + 0.9, height), layout="constrained")
    axis.set_xlim(0, width)
    axis.set_ylim(blocks * (len(lines) + 1), -0.2)
    axis.axis("off")
    for block, mask in enumerate(masks):
        for number, line in enumerate(lines):
            y = block * (len(lines) + 1) + number
            for index, at in line:
                piece = tokens[index]
                if mask[index]:
                    box = pyplot.Rectangle((at, y + 0.06), len(piece), 0.88, facecolor=HIDDEN, edgecolor="white")
                    axis.add_patch(box)
                # each character stands in its cell, whatever the font's own width
                for offset, character in enumerate(piece):
                    colour = "#7f9fb5" if mask[index] else "black"
                    place = (at + offset + 0.5, y + 0.5)
                    axis.text(*place, character, ha="center", va="center", color=colour, family="monospace", size=8)
    share = 100 * float(np.mean(masks))
    axis.set_title(_title(title, f"pale = masked, {share:.0f} % of tokens"), loc="left", fontsize=10)
    return save(figure, out)


def wrap(tokens: Sequence[str], width: int) -> list[list[tuple[int, int]]]:
    """Lines of ``(index, column)``; a token that a line has no room for begins the next one."""
    lines, column = [[]], 0
    for index, token in enumerate(tokens):
        if column and column + len(token) > width:
            lines.append([])
            column = 0
        lines[-1].append((index, column))
        column += len(token)
    return lines


def plot_spectrogram_masks(
    wave: np.ndarray,
    sample_rate: int,
    masks: np.ndarray,
    frame_rate: float,
    out: Path,
    title: str = "",
    first_centre: float = 0.0,
) -> Path:
    """A spectrogram and, below it, one stripe for each mask.

    Args:
        wave: (N,) samples at ``sample_rate`` Hz.
        masks: (M, T) bool, True = hidden from the student and predicted.
        frame_rate: frames per second of the masks.
        first_centre: seconds at which frame 0 is centred.
    """
    pyplot = import_pyplot()
    seconds = len(wave) / sample_rate
    figure, (top, below) = pyplot.subplots(
        2,
        1,
        figsize=(min(14.0, max(7.0, 2.2 * seconds)), 3.2 + 0.17 * len(masks)),
        height_ratios=(3.0, 0.2 * len(masks) + 0.2),
        sharex=True,
        layout="constrained",
    )
    image = draw_spectrogram(top, wave, sample_rate)
    figure.colorbar(image, ax=top, pad=0.01, label="power (dB below peak)")
    colours = np.where(np.asarray(masks, bool)[..., None], HIDDEN_RGB, np.uint8(60))
    left = first_centre - 0.5 / frame_rate
    extent = (left, left + masks.shape[1] / frame_rate, len(masks) + 0.5, 0.5)
    below.imshow(colours, aspect="auto", interpolation="nearest", extent=extent)
    for number in range(1, len(masks)):
        below.axhline(number + 0.5, color="white", linewidth=1.5)
    below.set_xlim(0, seconds)
    below.set_yticks([1, len(masks)] if len(masks) > 1 else [1])
    below.set_ylabel("mask")
    below.set_xlabel("time (s)")
    share = f"pale = masked, {100 * float(np.mean(masks)):.0f} % of frames; dark = what the student sees"
    top.set_title(_title(title, share), loc="left", fontsize=10)
    return save(figure, out)


def _title(title: str, share: str) -> str:
    return f"{title}: {share}" if title else share
