"""One utterance as the model meets it: its spectrogram, and the frames that the time mask hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from d2v_plugin.eval.plots import import_pyplot, save

WINDOW_SECONDS = 0.025
HOP_SECONDS = 0.005
# quieter than this below the loudest cell is drawn as silence
RANGE_DB = 70.0


def power_decibels(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """(bins, frames) power in dB relative to the loudest cell, cut at -RANGE_DB; Hann windows of 25 ms every 5 ms."""
    length, hop = round(WINDOW_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    padded = np.pad(np.asarray(wave, dtype=np.float64), (length // 2, length))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop][: len(wave) // hop + 1]
    power = np.abs(np.fft.rfft(frames * np.hanning(length), 1 << (length - 1).bit_length())).T ** 2
    peak = max(float(power.max()), 1e-20)
    return np.maximum(10.0 * np.log10(np.maximum(power / peak, 1e-20)), -RANGE_DB)


def mask_spans(mask: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of every run of True in a (T,) bool mask."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(mask, dtype=np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def draw_spectrogram(axis, wave: np.ndarray, sample_rate: int):
    """Draw onto ``axis`` over seconds and kHz; returns the image, for a colour bar."""
    image = axis.imshow(
        power_decibels(wave, sample_rate),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, len(wave) / sample_rate, 0, sample_rate / 2000),
        interpolation="nearest",
    )
    axis.set_ylabel("frequency (kHz)")
    return image


def plot_mask(
    wave: np.ndarray,
    sample_rate: int,
    mask: np.ndarray,
    frame_rate: float,
    out: Path,
    title: str = "",
    first_centre: float = 0.0,
) -> Path:
    """Draw the spectrogram and grey out what the student does not see.

    Args:
        wave: (N,) samples.
        sample_rate: Hz.
        mask: (T,) bool, True = hidden from the student and predicted.
        frame_rate: frames per second of the mask.
        out: PNG to write.
        first_centre: seconds at which frame 0 is centred.
    """
    pyplot = import_pyplot()
    seconds = len(wave) / sample_rate
    figure, axis = pyplot.subplots(figsize=(min(14.0, max(7.0, 2.2 * seconds)), 3.6), layout="constrained")
    image = draw_spectrogram(axis, wave, sample_rate)
    for start, end in mask_spans(mask):
        left = first_centre + (start - 0.5) / frame_rate
        right = left + (end - start) / frame_rate
        axis.axvspan(max(0.0, left), min(seconds, right), facecolor="#b7d7ea", alpha=0.7, edgecolor="none")
    axis.set_xlabel("time (s)")
    share = f"pale = masked, {100 * mask.mean():.0f} % of frames"
    axis.set_title(f"{title}: {share}" if title else share, loc="left", fontsize=10)
    figure.colorbar(image, ax=axis, pad=0.01, label="power (dB below peak)")
    return save(figure, out)
