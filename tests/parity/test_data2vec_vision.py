"""1.0 for images against upstream: same weights, images and masks give the same targets, loss and gradients."""

import itertools

import numpy as np
import pytest
import torch
from fairseq.criterions.model_criterion import ModelCriterion
from tiny_vision import build, images, masks, oracle

TRANSFORMER, WHOLE = {"ema_transformer_only": True}, {"ema_transformer_only": False}
SHARED, OWN = {"shared_rel_pos_bias": True}, {"shared_rel_pos_bias": False}
FLAGS = (
    "layer_norm_target_layer",
    "instance_norm_target_layer",
    "batch_norm_target_layer",
    "instance_norm_targets",
    "layer_norm_targets",
)
UNUSED = {"final_proj.weight", "final_proj.bias"}
# of upstream's code
pytestmark = [
    pytest.mark.filterwarnings("ignore:Positional args are being deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning"),
]
both_biases = pytest.mark.parametrize("bias", [SHARED, OWN], ids=["shared", "own"])
both_scopes = pytest.mark.parametrize("scope", [TRANSFORMER, WHOLE], ids=["transformer", "whole"])


def pair(**overrides):
    """(upstream's model, ours) with the same weights, none of them as initialised, and a teacher of its own."""
    torch.manual_seed(1)
    theirs, ours = oracle(**overrides), build(**overrides)
    theirs.set_num_updates(0), ours.set_num_updates(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for value in theirs.ema.fp32_params.values():
            if value.is_floating_point():
                value.add_(0.05 * torch.randn_like(value))
        theirs.ema.restore(theirs.ema.fp32_params)
    ours.load_state_dict({k: dict(v) if k == "_ema" else v for k, v in theirs.state_dict().items()})
    return theirs.eval(), ours.eval()


def relative(a, b):
    return float(((a - b).norm() / b.norm().clamp(min=1e-12)).detach())


def step(model, img, mask):
    """``(output, gradients)``, the loss scaled as fp16 training scales it."""
    model.given = mask
    out = model(img) if not hasattr(model, "masks") else model(img, mask_indices=mask.clone())
    model.zero_grad()
    (out["losses"]["regression"] * 0.37).backward()
    return out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_step(theirs, ours):
    img, mask = images(), masks()
    expected, expected_grads = step(theirs, img, mask)
    out, grads = step(ours, img, mask)
    assert out.keys() == expected.keys() | {"masked_pct"}
    assert out["sample_size"] == expected["sample_size"] == int(mask.sum())
    assert relative(out["losses"]["regression"], expected["losses"]["regression"]) < 1e-5
    for key in ("target_var", "pred_var", "ema_decay"):
        assert float(out[key]) == pytest.approx(float(expected[key]), rel=1e-5), key
    assert grads.keys() == expected_grads.keys() == {n for n, _ in ours.named_parameters()} - UNUSED
    for name, grad in expected_grads.items():
        assert relative(grads[name], grad) < 1e-5, (name, relative(grads[name], grad))


@both_biases
@pytest.mark.parametrize("end", [True, False], ids=["end", "fc"])
@pytest.mark.parametrize("layer_scale", [0.1, 0.0])
@both_scopes
def test_features_loss_and_every_gradient(bias, end, layer_scale, scope):
    theirs, ours = pair(end_of_block_targets=end, layer_scale_init_value=layer_scale, **bias, **scope)
    img = images()
    with torch.no_grad():
        assert relative(ours(img, mask=False), theirs(img, mask=False)) < 1e-5
        for a, b in zip(
            ours(img, mask=False, layer_results=True), theirs(img, mask=False, layer_results=True), strict=True
        ):
            assert a.shape == (3, 36, 48) and relative(a, b) < 1e-5
    assert_same_step(theirs, ours)


@pytest.mark.parametrize("flags", [(), *((f,) for f in FLAGS), *itertools.combinations(FLAGS, 2), FLAGS], ids="+".join)
@pytest.mark.parametrize("end", [True, False], ids=["end", "fc"])
def test_targets_of_every_normalisation(monkeypatch, flags, end):
    theirs, ours = pair(end_of_block_targets=end, **{f: f in flags for f in FLAGS})
    img, mask, expected, found = images(), masks(), [], []
    recipe, variance = ours.target_recipe, theirs.compute_var
    # upstream measures the variance of its targets, then of its predictions
    monkeypatch.setattr(theirs, "compute_var", lambda y: expected.append(y) or variance(y))
    monkeypatch.setattr(ours, "target_recipe", lambda *args: found.append(recipe(*args)) or found[-1])
    with torch.no_grad():
        theirs.given = mask
        theirs(img), ours(img, mask_indices=mask)
    assert found[0].shape == expected[0].shape == (int(mask.sum()), 48)
    assert relative(found[0], expected[0]) < 1e-5


@pytest.mark.parametrize("flag", FLAGS)
def test_gradients_under_every_normalisation(flag):
    assert_same_step(*pair(**{flag: True}))


@pytest.mark.parametrize(
    "overrides",
    [
        {"loss_beta": 2.0, "layer_norm_targets": True},
        {"loss_beta": 0.25},
        {"loss_scale": 0.5},
        {"loss_scale": 0.0},
        {"loss_scale": -1.0},
        {"average_top_k_layers": 1},
        {"average_top_k_layers": 3, "num_heads": 2, "depth": 4},
    ],
    ids=str,
)
def test_losses_and_other_settings(overrides):
    assert_same_step(*pair(**overrides))


def test_rows_given_by_the_loader_are_the_masks():
    _, ours = pair()
    img, mask = images(), masks()
    expected = ours(img, mask_indices=mask)
    out = ours(img, mask_indices=mask, masked_rows=mask.flatten().nonzero().squeeze(1))
    assert torch.equal(out["losses"]["regression"], expected["losses"]["regression"])
    square = ours(img, mask_indices=mask.view(3, 6, 6).long())
    assert torch.equal(square["losses"]["regression"], expected["losses"]["regression"])


def train(model, updates, img, mask):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    model.train()
    model.given = mask
    for update in range(1, updates + 1):
        out = model(img) if not hasattr(model, "masks") else model(img, mask_indices=mask)
        loss = out["losses"]["regression"] / int(mask.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.set_num_updates(update)
        losses.append(float(loss.detach()))
    return losses


@both_biases
@both_scopes
def test_losses_over_20_optimiser_steps(bias, scope):
    theirs, ours = pair(layer_norm_targets=True, loss_beta=0.5, **bias, **scope)
    img, mask = images(), masks()
    expected, losses = train(theirs, 20, img, mask), train(ours, 20, img, mask)
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@both_biases
@both_scopes
def test_ema_after_50_updates_with_annealing(bias, scope):
    theirs, ours = pair(**scope, **bias)
    theirs.train(), ours.train()
    for update in range(1, 51):
        with torch.no_grad():
            for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
                change = 0.01 * torch.randn_like(a)
                a.add_(change), b.add_(change)
        theirs.set_num_updates(update), ours.set_num_updates(update)
        assert ours.ema.decay == pytest.approx(theirs.ema.get_decay(), abs=1e-12)
    assert ours.ema.fp32.keys() == theirs.ema.fp32_params.keys()
    running, trailed, moved = ours.ema.model.state_dict(), ours._trailed.state_dict(), 0
    for name, value in theirs.ema.fp32_params.items():
        assert relative(ours.ema.fp32[name].float(), value.float()) < 1e-6, name
        assert relative(running[name].float(), value.float()) < 1e-6, name
        moved += not torch.equal(trailed[name], value)
    assert moved > 30


@both_biases
@both_scopes
def test_state_dict_round_trip_both_ways(bias, scope):
    theirs, ours = pair(**scope, **bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert list(ours.ema.state_dict()) == list(theirs.ema.fp32_params)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for key, value in theirs.state_dict().items():
        assert key == "_ema" or ours.state_dict()[key].dtype == value.dtype
    with torch.no_grad():
        for p in [*ours.parameters(), *ours.ema.fp32.values()]:
            if p.is_floating_point():
                p.add_(0.1 * torch.randn_like(p))
    theirs.load_state_dict(ours.state_dict())
    assert_same_step(theirs, ours)


def test_upstreams_criterion_logs_the_same():
    theirs, ours = pair()
    mask = masks()
    theirs.given = mask
    criterion = ModelCriterion(None, {}, ["ema_decay", "target_var", "pred_var"])
    sample = {"id": torch.arange(3), "net_input": {"img": images()}}
    expected = criterion(theirs, sample)
    sample["net_input"]["mask_indices"] = mask
    out = criterion(ours, sample)
    assert out[1] == expected[1] and out[2].keys() == expected[2].keys()
    for key, value in expected[2].items():
        assert float(out[2][key]) == pytest.approx(float(value), rel=1e-5), key
