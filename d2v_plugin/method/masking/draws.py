"""Uniform numbers for masks: by sample, so that a mask depends on nothing but its sample, or from a generator.

``SampleDraws`` has no state. A number is a hash of where it stands: seed, update, sample, clone, name and position. So
a sample gets the same mask alone or in any batch, on any rank, in any data worker, on a CPU or a GPU.

    row   = mix(mix(id + key(seed, update)) + (clone + 1) * STEP)
    value = mix(mix(row ^ word(name)) + (position + 1) * STEP), its upper 24 bits over 2**24

``mix`` is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014), a bijection of 64-bit words in which every bit of the input flips half of the bits of the output. Words are held
in int64, whose products and sums wrap around as those of unsigned words do.
"""

import functools
import hashlib

import torch

STEP = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: odd, so that multiples of it are all different


class SampleDraws:
    """Numbers that belong to samples.

    Args:
        seed, update: integers; ``update`` may be whatever counts the times a sample is masked, such as the epoch.
        ids: B integers that tell samples apart, a list or an int64 tensor.
        clones: masks per sample; row ``b * clones + m`` is clone ``m`` of sample ``b``.
        device: where numbers are made, by default where ``ids`` are.
    """

    def __init__(self, seed, update, ids, clones=1, device=None):
        ids = torch.as_tensor(ids, dtype=torch.long)
        self.device = torch.device(device) if device is not None else ids.device
        self.rows = ids.numel() * clones
        samples = _mix(ids.to(self.device, non_blocking=True).flatten() + _key(seed, update))
        self._row_words = _mix(samples.unsqueeze(1) + _steps(clones, self.device)).flatten()  # (rows,)

    def uniform(self, name, n):
        """(rows, n) fp32 in [0, 1), multiples of 2**-24. A longer draw of one name starts with the shorter one."""
        words = _mix(self._row_words ^ _word(name)).unsqueeze(1) + _steps(n, self.device)
        return _shift(_mix(words), 40).to(torch.float32).mul_(2.0**-24)


class GeneratorDraws:
    """The same interface over a ``torch.Generator`` (None is torch's own): every call takes the next numbers."""

    def __init__(self, generator, rows, device=None):
        self.generator = generator
        self.rows = rows
        source = torch.device("cpu") if generator is None else generator.device
        self.device = torch.device(device) if device is not None else source
        self._source = source

    def uniform(self, name, n):
        """(rows, n) fp32 in [0, 1); ``name`` is not used."""
        drawn = torch.rand(self.rows, n, generator=self.generator, device=self._source)
        return drawn.to(self.device, non_blocking=True)


def _mix(words):
    """Scramble int64 words in place; returns them."""
    words ^= _shift(words, 30)
    words *= _signed(0xBF58476D1CE4E5B9)
    words ^= _shift(words, 27)
    words *= _signed(0x94D049BB133111EB)
    words ^= _shift(words, 31)
    return words


def _shift(words, bits):
    """Shift right and fill with zeros; ``>>`` on int64 would repeat the sign."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _steps(n, device):
    return torch.arange(1, n + 1, device=device).mul_(_signed(STEP))


def _signed(word):
    """The int64 that holds the lower 64 bits of an integer."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


@functools.lru_cache(maxsize=256)
def _word(name):
    return _signed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


def _key(seed, update):
    key = _mix(torch.tensor([_signed(seed)]))
    return int(_mix(key + _signed(update)))
