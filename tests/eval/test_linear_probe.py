"""Logistic regression, against scikit-learn and the conditions of a minimum."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from d2v_plugin.errors import UserError
from d2v_plugin.eval.linear_probe import PENALTIES, fit_linear_probe


def mixture(count, seed, width=6, classes=3, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return 5 + 3 * (centres[labels] + spread * torch.randn(count, width, generator=generator)), labels


TRAIN, VALID, TEST = mixture(200, 1), mixture(80, 2), mixture(120, 3)


@pytest.mark.parametrize("penalty", [1e-3, 1e-1])
def test_equals_scikit_learns(penalty):
    x, labels = TRAIN
    probe = fit_linear_probe(x, labels, *VALID, penalties=[penalty])
    z = ((x.double() - probe.mean) / probe.scale).numpy()
    theirs = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-9, max_iter=5000).fit(z, labels.numpy())
    # the loss does not change when all classes' biases do alike
    ours = probe.bias - probe.bias.mean()
    torch.testing.assert_close(probe.weights.T, torch.from_numpy(theirs.coef_), rtol=0, atol=2e-4)
    torch.testing.assert_close(ours, torch.from_numpy(theirs.intercept_), rtol=0, atol=2e-4)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_gradient_vanishes(penalty):
    x, labels = TRAIN
    probe = fit_linear_probe(x, labels, *VALID, penalties=[penalty])
    weights, bias = probe.weights.clone().requires_grad_(), probe.bias.clone().requires_grad_()
    z = (x.double() - probe.mean) / probe.scale
    (F.cross_entropy(z @ weights + bias, labels) + penalty / 2 * weights.square().sum()).backward()
    assert max(weights.grad.abs().max(), bias.grad.abs().max()) < 2e-6


def test_the_penalty_is_the_validation_parts_choice():
    generator = torch.Generator().manual_seed(5)
    # few images and many features that say nothing: hardly any penalty learns them by heart

    def noisy(count, seed):
        x, labels = mixture(count, seed, spread=1.5)
        return torch.cat([x, 3 * torch.randn(count, 60, generator=generator)], 1), labels

    train, valid = noisy(40, 1), noisy(400, 2)
    probe = fit_linear_probe(*train, *valid)
    each = {penalty: fit_linear_probe(*train, *valid, penalties=[penalty]).valid_accuracy for penalty in PENALTIES}
    assert probe.valid_accuracy == max(each.values()) > each[min(PENALTIES)]
    assert probe.penalty == max(penalty for penalty, share in each.items() if share == probe.valid_accuracy)
    assert probe.accuracy(*valid) == probe.valid_accuracy


def test_runs_repeat_and_scale_does_not_matter():
    x, labels = TRAIN
    first, second = (fit_linear_probe(x, labels, *VALID) for _ in range(2))
    assert torch.equal(first.weights, second.weights) and first.penalty == second.penalty
    other = fit_linear_probe(1000 * x, labels, 1000 * VALID[0], VALID[1])
    assert torch.allclose(other.weights, first.weights, atol=1e-5)
    assert first.accuracy(*TEST) == other.accuracy(1000 * TEST[0], TEST[1]) > 0.6


def test_constant_features_are_left_out():
    x, labels = TRAIN
    constant = torch.cat([x, torch.full((len(x), 1), 7.0)], 1)
    probe = fit_linear_probe(constant, labels, torch.cat([VALID[0], torch.randn(len(VALID[0]), 1)], 1), VALID[1])
    plain = fit_linear_probe(x, labels, *VALID)
    assert torch.allclose(probe.weights[:-1], plain.weights, atol=1e-6) and probe.valid_accuracy == plain.valid_accuracy


def test_what_cannot_be_probed():
    x = torch.randn(6, 2)
    with pytest.raises(UserError, match="two classes or more, got 1"):
        fit_linear_probe(x, torch.zeros(6, dtype=torch.long), x, torch.zeros(6, dtype=torch.long))
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    for valid in (torch.tensor([0, 2, 0, 1, 0, 1]), labels[:0]):
        with pytest.raises(UserError, match="the validation part must hold images"):
            fit_linear_probe(x, labels, x[: len(valid)], valid)
