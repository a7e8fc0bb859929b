"""Mel-frequency cepstra: known transforms, alignment, invariances."""

import numpy as np
import pytest
from scipy.fft import dct

from d2v_plugin.eval.mfcc import MEL_BANDS, dct_matrix, hz_to_mel, mel_filterbank, mel_to_hz, mfcc


def test_dct_matches_scipy():
    x = np.random.default_rng(0).standard_normal((5, MEL_BANDS))
    np.testing.assert_allclose(x @ dct_matrix(MEL_BANDS).T, dct(x, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(dct_matrix(7) @ dct_matrix(7).T, np.eye(7), atol=1e-12)


def test_mel_scale():
    assert hz_to_mel(1000.0) == pytest.approx(999.99, abs=0.02)
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(np.array([20.0, 440.0, 7999.0]))), [20, 440, 7999])


def test_filterbank_responds_at_its_centres():
    bank = mel_filterbank(16000, 4096)
    assert bank.shape == (MEL_BANDS, 2049) and bank.min() == 0 and bank.max() <= 1
    edges = mel_to_hz(np.linspace(hz_to_mel(20.0), hz_to_mel(8000.0), MEL_BANDS + 2))
    peaks = bank.argmax(1) * 16000 / 4096
    np.testing.assert_allclose(peaks, edges[1:-1], atol=16000 / 4096)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_loudness_is_in_the_first_coefficient_only(rate):
    wave = 0.1 * np.random.default_rng(0).standard_normal(rate)
    centres = np.arange(200, rate - 400, rate // 50)
    np.testing.assert_allclose(mfcc(wave, rate, centres), mfcc(4 * wave, rate, centres), atol=1e-9)
    louder = mfcc(4 * wave, rate, centres, 1, 1) - mfcc(wave, rate, centres, 1, 1)
    np.testing.assert_allclose(louder, np.log(16) * np.sqrt(MEL_BANDS), rtol=1e-9)


def test_frames_follow_their_centres():
    wave = np.random.default_rng(0).standard_normal(4000)
    both = mfcc(wave, 8000, np.array([1000.0, 1160.0]))
    shifted = mfcc(wave[160:], 8000, np.array([840.0, 1000.0]))
    np.testing.assert_allclose(both, shifted, atol=1e-9)
    assert both.shape == (2, 12) and not np.allclose(both[0], both[1])
    # only the 25 ms around a centre count
    changed = wave.copy()
    changed[:890] = changed[1102:] = 0
    np.testing.assert_allclose(mfcc(changed, 8000, np.array([1000.0])), both[:1], atol=1e-9)


def test_edges_and_silence_are_finite():
    found = mfcc(np.zeros(400), 16000, np.array([0.0, 200.0, 399.0]))
    assert np.isfinite(found).all()


def test_errors():
    with pytest.raises(ValueError, match="got 0 frames"):
        mfcc(np.zeros(400), 16000, np.array([]))
    with pytest.raises(ValueError, match="coefficients 0 to 13"):
        mfcc(np.zeros(400), 16000, np.array([0.0]), 0, 13)
