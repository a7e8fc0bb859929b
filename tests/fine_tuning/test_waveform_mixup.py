"""Mixtures: what is drawn, and what mixing keeps."""

import pytest
import torch

from d2v_plugin.fine_tuning.waveform_mixup import Mixture, draw_mixture, loudness, mixed_labels, mixed_waveforms


def draw(B=4000, seed=1, **fields):
    settings = {"probability": 1.0, "lowest": 0.5, "same": False} | fields
    return draw_mixture(B, torch.Generator().manual_seed(seed), **settings)


def test_draws_are_what_the_settings_say():
    mixture = draw()
    assert mixture.ratio.min() >= 0.5 and mixture.ratio.max() <= 1
    assert float(mixture.ratio.mean()) == pytest.approx(0.75, abs=0.01)
    assert sorted(mixture.partner.tolist()) == list(range(4000))
    assert len(set(draw(same=True).ratio.tolist())) == 1
    untouched = draw(probability=0.7).ratio == 1
    assert float(untouched.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert (draw(lowest=0.0).ratio > 0).all()
    again = draw()
    assert torch.equal(again.ratio, mixture.ratio) and torch.equal(again.partner, mixture.partner)


@pytest.mark.parametrize("gain_mode", ["none", "naive_rms", "RMSE", "A_weighting"])
def test_a_ratio_of_1_changes_nothing(gain_mode):
    source = torch.randn(3, 5000)
    mixture = Mixture(torch.tensor([1.0, 0.6, 1.0]), torch.tensor([1, 2, 0]))
    before = source.clone()
    mixed = mixed_waveforms(source, mixture, gain_mode)
    assert torch.equal(source, before)
    assert torch.equal(mixed[[0, 2]], source[[0, 2]]) and not torch.equal(mixed[1], source[1])
    label = torch.eye(3)
    assert torch.equal(mixed_labels(label, mixture)[[0, 2]], label[[0, 2]])
    torch.testing.assert_close(mixed_labels(label, mixture)[1], torch.tensor([0.0, 0.6, 0.4]))


def test_the_energy_of_unrelated_recordings_is_kept():
    source = torch.randn(2, 100_000)
    mixed = mixed_waveforms(source, Mixture(torch.tensor([0.5, 0.7]), torch.tensor([1, 0])))
    assert mixed.std(1).tolist() == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("gain_mode", ["RMSE", "A_weighting"])
def test_loudness_is_taken_into_account(gain_mode):
    """A recording 20 dB softer than its partner is scaled up: it is heard with the ratio that was drawn."""
    source = torch.randn(2, 20_000) * torch.tensor([[0.1], [1.0]])
    gain = loudness(source, gain_mode)
    assert float(gain[1] - gain[0]) == pytest.approx(20, abs=1)
    mixed = mixed_waveforms(source, Mixture(torch.tensor([0.5, 1.0]), torch.tensor([1, 0])), gain_mode)
    parts = torch.linalg.lstsq(source.T, mixed[0]).solution * torch.tensor([0.1, 1.0])
    assert float(parts[0] / parts[1]) == pytest.approx(1, abs=0.15)


def test_hearing_weighs_frequencies():
    """1 kHz is the reference; 100 Hz is 19.1 dB below it (IEC 61672)."""
    time = torch.arange(16_000) / 16_000
    source = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (1000.0, 101.5625)])
    gain = loudness(source, "A_weighting")
    assert float(gain[0] - gain[1]) == pytest.approx(19.0, abs=0.4)


def test_recordings_shorter_than_a_window_and_silence_have_a_loudness():
    assert torch.isfinite(loudness(torch.randn(2, 500), "A_weighting")).all()
    assert loudness(torch.zeros(1, 5000), "RMSE").tolist() == [pytest.approx(-80)]
