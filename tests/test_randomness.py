"""Draws are a function of (seed of the update, name, rank, draws so far) and of nothing else."""

import torch

from d2v_plugin.randomness import DrawStream


def draws(stream, n=3):
    return [torch.rand(4, generator=stream.generator()).tolist() for _ in range(n)]


def test_repeat_after_reseeding_whatever_happened_in_between():
    stream = DrawStream("mask")
    torch.manual_seed(7)
    first = draws(stream)
    torch.manual_seed(8)
    other = draws(stream)
    torch.rand(100)
    torch.manual_seed(7)
    assert draws(stream) == first != other
    torch.manual_seed(7)  # the same seed again is not a new update
    assert draws(DrawStream("mask")) == first
    assert len({tuple(d) for d in first}) == 3


def test_names_and_ranks_are_independent():
    torch.manual_seed(7)
    seen = [draws(DrawStream("mask")), draws(DrawStream("layerdrop")), draws(DrawStream("mask", rank=1))]
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    draws(DrawStream("mask"))
    assert torch.equal(torch.rand(3), expected)
