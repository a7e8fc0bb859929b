"""The convolution specification is data."""

import pytest
import torch

from d2v_plugin.modules.conv_spec import ConvSpec

BASE = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"


def test_reads_what_recipes_write():
    spec = ConvSpec.parse(BASE)
    assert spec == ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2
    assert (spec.stride, spec.receptive_field) == (320, 400)


@pytest.mark.parametrize("samples", [400, 719, 720, 16000, 123456])
def test_frames_are_those_of_the_convolutions(samples):
    spec = ConvSpec.parse("[(2, 10, 5)] + [(2, 3, 2)] * 4 + [(2,2,2)] * 2")
    x = torch.zeros(1, 1, samples)
    for _, kernel, stride in spec:
        x = torch.nn.functional.conv1d(x, torch.zeros(1, 1, kernel), stride=stride)
    assert spec.frames(samples) == x.shape[-1]
    assert spec.frames(torch.tensor([samples])).tolist() == [x.shape[-1]]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch owned')",
        "[(512, 10, 5)] + [c for c in ().__class__.__bases__]",
        "open('owned', 'w')",
        "[(512, 10)]",
        "[(512, 10, 0)]",
        "[(512, 10, -5)]",
        "[(512.0, 10, 5)]",
        "[(True, 10, 5)]",
        "[(512, 10, 5)] * 10 ** 9",
        "[(512, 10, 5)] * 999999999",
        "[]",
        "",
        "[(512, 10, 5)",
        "(512, 10, 5)",
        "None",
    ],
)
def test_refuses_everything_else_and_runs_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="conv_feature_layers must list"):
        ConvSpec.parse(text)
    assert not list(tmp_path.iterdir())
