"""Mel-frequency cepstral coefficients at given frame centres: the targets of the feature probe.

Computed here, in numpy, because the frames must sit exactly where the model's frames sit: frame t of a
convolution stack with total stride s and receptive field r is centred at sample t*s + (r-1)/2.
Recipe: pre-emphasis 0.97, 25 ms Hamming window, power spectrum, 40 triangular mel filters from 20 Hz to
half the sample rate, log, orthonormal DCT-II (S. Davis and P. Mermelstein, 1980; mel scale of D. O'Shaughnessy).
"""

from __future__ import annotations

import numpy as np

WINDOW_SECONDS = 0.025
MEL_BANDS = 40
LOWEST_HZ = 20.0
PRE_EMPHASIS = 0.97
# keeps log finite on digital silence; power of a waveform in [-1, 1]
POWER_FLOOR = 1e-10


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """2595 log10(1 + f/700)."""
    return 2595.0 * np.log10(1.0 + np.asarray(hz, dtype=np.float64) / 700.0)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Inverse of :func:`hz_to_mel`."""
    return 700.0 * (10.0 ** (np.asarray(mel, dtype=np.float64) / 2595.0) - 1.0)


def mel_filterbank(
    sample_rate: int, fft_size: int, bands: int = MEL_BANDS, lowest_hz: float = LOWEST_HZ
) -> np.ndarray:
    """(bands, fft_size // 2 + 1) triangles of height 1, evenly spaced in mel up to half the sample rate."""
    edges = mel_to_hz(np.linspace(hz_to_mel(lowest_hz), hz_to_mel(sample_rate / 2), bands + 2))
    bins = np.arange(fft_size // 2 + 1) * sample_rate / fft_size
    rising = (bins[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins[None]) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling))


def dct_matrix(size: int) -> np.ndarray:
    """(size, size) orthonormal DCT-II; row k is the k-th cosine."""
    k, n = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.sqrt(2.0 / size) * np.cos(np.pi * k * (2 * n + 1) / (2 * size))
    matrix[0] /= np.sqrt(2.0)
    return matrix


def _windows(wave: np.ndarray, centres: np.ndarray, length: int) -> np.ndarray:
    """(T, length) slices around each centre; outside the recording there is silence."""
    starts = np.floor(centres - (length - 1) / 2 + 0.5).astype(np.int64)
    left = max(0, -int(starts.min()))
    right = max(0, int(starts.max()) + length - len(wave))
    padded = np.pad(wave, (left, right))
    return np.lib.stride_tricks.sliding_window_view(padded, length)[starts + left]


def mfcc(wave: np.ndarray, sample_rate: int, centres: np.ndarray, first: int = 2, last: int = 13) -> np.ndarray:
    """Coefficients ``first`` to ``last`` (1-based; 1 is the overall level) of every frame.

    Args:
        wave: (N,) samples in [-1, 1].
        sample_rate: Hz.
        centres: (T,) frame centres in samples, fractions allowed.
    Returns:
        (T, last - first + 1) float64.
    Raises:
        ValueError: coefficients outside 1..40, or no frame.
    """
    if not 1 <= first <= last <= MEL_BANDS or len(centres) == 0:
        raise ValueError(
            f"need at least one frame and 1 <= first <= last <= {MEL_BANDS}, got {len(centres)} frames, "
            f"coefficients {first} to {last}"
        )
    wave = np.asarray(wave, dtype=np.float64)
    emphasised = np.append(wave[:1], wave[1:] - PRE_EMPHASIS * wave[:-1])
    length = round(WINDOW_SECONDS * sample_rate)
    fft_size = 1 << (length - 1).bit_length()
    frames = _windows(emphasised, np.asarray(centres, dtype=np.float64), length) * np.hamming(length)
    power = np.abs(np.fft.rfft(frames, fft_size)) ** 2 / fft_size
    log_mel = np.log(np.maximum(power @ mel_filterbank(sample_rate, fft_size).T, POWER_FLOOR))
    return log_mel @ dct_matrix(MEL_BANDS)[first - 1 : last].T
