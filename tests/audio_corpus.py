"""Small recordings and manifests, made where a test needs them."""

import numpy as np
import pytest
import soundfile as sf

RATE = 16000


def tone(samples, seed=0, rate=RATE):
    """(samples,) fp32: a tone with some noise, so that no two recordings are alike."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 800) * time) + 0.05 * rng.standard_normal(samples)
    return wave.astype(np.float32)


class Corpus:
    """Writes recordings below one folder and manifests that list them."""

    def __init__(self, folder):
        self.folder = folder
        self.lines = []

    def add(self, name, samples=4000, *, rate=RATE, listed=None, wave=None, **options):
        wave = tone(samples, seed=len(self.lines), rate=rate) if wave is None else wave
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, wave, rate, **options)
        self.list(name, len(wave) if listed is None else listed)
        return path

    def list(self, name, frames):
        self.lines.append(f"{name}\t{frames}")

    def manifest(self, name="train.tsv", root=None):
        path = self.folder / name
        path.write_text("\n".join([str(root or self.folder), *self.lines]) + "\n")
        return path


@pytest.fixture
def corpus(tmp_path):
    return Corpus(tmp_path)
