"""Numbers by sample: their definition, that nothing else decides them, and that they are random enough."""

import hashlib

import pytest
import torch

from d2v_plugin.method.masking import GeneratorDraws, SampleDraws
from d2v_plugin.method.masking import draws as module

WORD = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15


def mix(word):
    """The finaliser on Python's unbounded integers."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    return word ^ (word >> 31)


def number(seed, update, sample, clone, name, position):
    key = mix((mix(seed & WORD) + update) & WORD)
    row = mix((mix((sample + key) & WORD) + (clone + 1) * STEP) & WORD)
    named = mix(row ^ int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))
    return (mix((named + (position + 1) * STEP) & WORD) >> 40) / 2**24


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 + 17])
def test_numbers_are_as_defined_in_unbounded_integers(seed):
    ids = [0, 3, 10**12, -7]
    drawn = SampleDraws(seed, 400_000, ids, clones=3).uniform("centre", 5)
    assert drawn.shape == (12, 5) and drawn.dtype == torch.float32
    for b, sample in enumerate(ids):
        for m in range(3):
            expected = [number(seed, 400_000, sample, m, "centre", i) for i in range(5)]
            assert drawn[b * 3 + m].tolist() == expected


def test_numbers_do_not_change_between_versions():
    drawn = SampleDraws(1, 2, [3]).uniform("block.centre", 4)[0]
    assert (drawn * 2**24).long().tolist() == [7914692, 4529199, 182457, 6542091]


def test_a_row_is_the_same_in_any_batch():
    whole = SampleDraws(1, 5, torch.tensor([10, 11, 12]), clones=3)
    part = SampleDraws(1, 5, [12, 10], clones=2)
    drawn = part.uniform("a", 20)
    assert torch.equal(drawn, whole.uniform("a", 50)[[6, 7, 0, 1], :20])
    whole.uniform("b", 7)
    assert torch.equal(drawn, part.uniform("a", 20))


def test_ids_are_left_as_they_are():
    ids = torch.tensor([4, 5, 6])
    SampleDraws(1, 1, ids, clones=2).uniform("a", 3)
    assert ids.tolist() == [4, 5, 6]


def test_nothing_at_all():
    assert SampleDraws(1, 1, [], clones=4).uniform("a", 3).shape == (0, 3)
    assert SampleDraws(1, 1, [1]).uniform("a", 0).shape == (1, 0)


@pytest.mark.gpu
def test_the_same_numbers_on_a_gpu():
    options = {"seed": 3, "update": 9, "ids": list(range(100)), "clones": 4}
    on_gpu = SampleDraws(**options, device="cuda").uniform("a", 500)
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), SampleDraws(**options).uniform("a", 500))


# -- randomness ------------------------------------------------------------------------------------
# Every statistic below is a normal draw when numbers are uniform and independent, or (chi-square) close to one.

LIMIT = 4.5


def chi_square(cells, bins):
    """Counts of ``bins`` equally likely cells, as standard deviations above the mean."""
    counts = torch.bincount(cells.flatten(), minlength=bins).double()
    expected = cells.numel() / bins
    return float(((counts - expected) ** 2 / expected).sum() - (bins - 1)) / (2 * (bins - 1)) ** 0.5


def pairs_of(x, y, bins=32):
    """How far pairs (x, y) are from being spread evenly over a square, and their correlation; both in deviations."""
    joint = (x.double() * bins).long() * bins + (y.double() * bins).long()
    correlation = float((12 * (x.double() - 0.5) * (y.double() - 0.5)).mean() * x.numel() ** 0.5)
    return max(abs(chi_square(joint, bins**2)), abs(correlation))


def spread():
    """The largest deviation of numbers of 256 samples, 4 clones and 256 positions from uniform ones."""
    drawn = SampleDraws(1, 1, range_of(256), clones=4).uniform("a", 256)
    bits = (drawn.double() * 2**24).long()
    balance = [abs(float(((bits >> b) & 1).double().mean() - 0.5)) * 2 * bits.numel() ** 0.5 for b in range(24)]
    low = chi_square(bits & 255, 256)
    return max([*balance, abs(low), abs(chi_square(bits >> 16, 256)), abs(chi_square(bits >> 8 & 255, 256))])


def range_of(n):
    return list(range(n))


def neighbours(kind):
    """Two arrays of numbers that stand side by side in one of the things that name them."""
    drawn = SampleDraws(1, 1, range_of(256), clones=4).uniform("a", 256)
    grid = drawn.view(256, 4, 256)
    if kind == "position":
        return grid[..., :-1], grid[..., 1:]
    if kind == "clone":
        return grid[:, :-1], grid[:, 1:]
    if kind == "id":
        return grid[:-1], grid[1:]
    if kind == "id and position":
        return grid[:-1, :, 1:], grid[1:, :, :-1]
    if kind == "clone and position":
        return grid[:, :-1, 1:], grid[:, 1:, :-1]
    if kind == "id and update":
        return drawn[4:], SampleDraws(1, 2, range_of(255), clones=4).uniform("a", 256)
    other = {"update": (1, 2, "a"), "seed": (2, 1, "a"), "name": (1, 1, "b")}[kind]
    return drawn, SampleDraws(*other[:2], range_of(256), clones=4).uniform(other[2], 256)


KINDS = ["position", "clone", "id", "id and position", "clone and position", "id and update", "update", "seed", "name"]


def test_uniform_in_every_bit():
    assert spread() < LIMIT
    drawn = SampleDraws(1, 1, range_of(1000)).uniform("a", 1000)
    assert 0 <= float(drawn.min()) and float(drawn.max()) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_independent(kind):
    assert pairs_of(*neighbours(kind)) < LIMIT


def test_the_statistics_see_numbers_that_are_not_mixed(monkeypatch):
    monkeypatch.setattr(module, "_mix", lambda words: words)
    assert spread() > 10 * LIMIT
    assert all(pairs_of(*neighbours(kind)) > 10 * LIMIT for kind in KINDS)


# -- from a generator ------------------------------------------------------------------------------


def test_a_generator_gives_what_torch_gives():
    drawn = GeneratorDraws(torch.Generator().manual_seed(3), 4)
    expected = torch.Generator().manual_seed(3)
    for n in (5, 7):
        assert torch.equal(drawn.uniform("a", n), torch.rand(4, n, generator=expected))
    torch.manual_seed(3)
    assert torch.equal(
        GeneratorDraws(None, 4).uniform("a", 5), torch.rand(4, 5, generator=torch.Generator().manual_seed(3))
    )


def test_a_generators_numbers_move_to_the_device():
    drawn = GeneratorDraws(torch.Generator(), 4, device="meta")
    assert drawn.uniform("a", 3).device.type == drawn.device.type == "meta"
