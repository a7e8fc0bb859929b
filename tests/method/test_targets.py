"""The target recipe: fused and step-by-step paths agree, and padding does not move frames."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

from d2v_plugin.method.targets import TargetRecipe

PAPER = {
    "speech 1.0": TargetRecipe(instance_norm_target_layer=True),
    "text 1.0": TargetRecipe(layer_norm_target_layer=True),
    "images 2.0": TargetRecipe(instance_norm_target_layer=True, layer_norm_targets=True),
    "text 2.0 large": TargetRecipe(layer_norm_target_layer=True, instance_norm_targets=True),
    "plain": TargetRecipe(),
}


def by_hand(recipe, layers):
    total = 0
    for x in layers:
        x = x.double()
        if recipe.instance_norm_target_layer:
            x = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
        if recipe.layer_norm_target_layer:
            x = F.layer_norm(x, x.shape[-1:])
        total = total + x
    y = total / len(layers)
    if recipe.layer_norm_targets:
        y = F.layer_norm(y, y.shape[-1:])
    if recipe.instance_norm_targets:
        y = F.instance_norm(y.transpose(1, 2)).transpose(1, 2)
    return y


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("time_major", [False, True], ids=["BTC", "TBC"])
def test_the_papers_recipes_take_the_fused_path_and_are_right(name, time_major):
    recipe = PAPER[name]
    assert recipe._fused
    shape = (29, 3, 20) if time_major else (3, 29, 20)
    layers = [torch.randn(shape) * 3 + 5 for _ in range(4)]
    if time_major:
        layers = [x.transpose(0, 1) for x in layers]
    rows = torch.tensor([0, 5, 28, 29, 60, 86])
    expected = by_hand(recipe, layers)
    torch.testing.assert_close(recipe(layers).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recipe(layers, rows).double(), expected.flatten(0, 1)[rows], rtol=1e-5, atol=1e-5)


def test_every_combination_of_flags_gives_rows_of_the_whole():
    names = [f for f in TargetRecipe.__dataclass_fields__ if f not in ("time_major", "length_aware_targets")]
    layers = [torch.randn(3, 11, 8) for _ in range(2)]
    rows = torch.tensor([1, 12, 32])
    for flags in itertools.product([False, True], repeat=len(names)):
        recipe = TargetRecipe(**dict(zip(names, flags, strict=True)))
        torch.testing.assert_close(recipe(layers, rows), recipe(layers).flatten(0, 1)[rows])


@pytest.mark.parametrize("name", ["speech 1.0", "images 2.0", "text 2.0 large"])
def test_length_aware_targets_do_not_see_padding(name):
    recipe = dataclasses.replace(PAPER[name], length_aware_targets=True)
    lengths = [29, 17, 5]
    layers = [torch.randn(3, 29, 20) * 3 + 5 for _ in range(4)]
    together = recipe(layers, None, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        torch.testing.assert_close(together[b : b + 1, :n], PAPER[name]([x[b : b + 1, :n] for x in layers]))
    assert not torch.allclose(PAPER[name](layers, None, torch.tensor(lengths))[1, :17], together[1, :17])


def test_length_aware_targets_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="length_aware_targets goes with at most one"):
        TargetRecipe(batch_norm_target_layer=True, length_aware_targets=True)


def test_targets_carry_no_gradient_and_are_fp32():
    layers = [torch.randn(2, 9, 8, dtype=torch.half, requires_grad=True) for _ in range(2)]
    y = PAPER["speech 1.0"](layers)
    assert not y.requires_grad and y.dtype == torch.float32
