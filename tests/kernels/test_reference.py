"""The eager twins against formulas written out in fp64."""

import pytest
import torch
import torch.nn.functional as F
from d2v_kernels import reference


def written_out(layers, layer_norm, final_norm, eps=1e-5):
    def norm(x, kind):
        if kind == "none":
            return x
        axis = 1 if kind == "instance" else 2
        mean = x.mean(axis, keepdim=True)
        return (x - mean) / ((x - mean).pow(2).mean(axis, keepdim=True) + eps).sqrt()

    return norm(torch.stack([norm(x, layer_norm) for x in layers]).mean(0), final_norm)


@pytest.mark.parametrize("layer_norm", ["instance", "layer", "none"])
@pytest.mark.parametrize("final_norm", ["none", "layer", "instance"])
def test_targets(layer_norm, final_norm):
    layers = [torch.randn(9, 3, 8, dtype=torch.float64).transpose(0, 1) * 3 + 1 for _ in range(4)]
    expected = written_out(layers, layer_norm, final_norm)
    y = reference.topk_instance_norm_mean(layers, layer_norm=layer_norm, final_norm=final_norm)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    rows = torch.randperm(27)[:5]
    picked = reference.topk_instance_norm_mean(layers, layer_norm=layer_norm, final_norm=final_norm, rows=rows)
    torch.testing.assert_close(picked, expected.reshape(27, 8)[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_norm", ["instance", "layer", "none"])
@pytest.mark.parametrize("final_norm", ["none", "layer", "instance"])
def test_with_lengths_each_sample_is_as_if_alone(layer_norm, final_norm):
    layers = [torch.randn(3, 9, 8, dtype=torch.float64) for _ in range(2)]
    lengths = torch.tensor([9, 4, 2])
    y = reference.topk_instance_norm_mean(layers, layer_norm=layer_norm, final_norm=final_norm, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = written_out([x[b : b + 1, :n] for x in layers], layer_norm, final_norm)
        torch.testing.assert_close(y[b : b + 1, :n], alone, rtol=1e-12, atol=1e-12)
        assert y[b, n:].eq(0).all()


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_loss_gradient_and_statistics(beta):
    pred = torch.randn(2, 7, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(7, 8, dtype=torch.float64)
    pred_rows, target_rows = torch.tensor([0, 3, 8, 13]), torch.tensor([1, 1, 6, 0])
    loss, *moments = reference.masked_smooth_l1(
        pred, targets, pred_rows=pred_rows, target_rows=target_rows, beta=beta, scale=0.5
    )
    (loss * 3).backward()
    p, t = pred.detach().view(14, 8)[pred_rows], targets[target_rows]
    d = p - t
    terms, slope = d.pow(2), 2 * d
    if beta:
        terms = torch.where(d.abs() < beta, d.pow(2) / (2 * beta), d.abs() - beta / 2)
        slope = (d / beta).clamp(-1, 1)
    torch.testing.assert_close(loss.detach(), terms.sum() * 0.5)
    torch.testing.assert_close(pred.grad.view(14, 8), torch.zeros(14, 8).double().index_add(0, pred_rows, slope * 1.5))
    expected = [x for side in (p, t) for x in (side.mean(0), side.var(0) * 3)]
    for value, right in zip(moments, expected, strict=True):
        torch.testing.assert_close(value, right)


def test_beta_zero_is_squared_error_not_absolute():
    pred, targets = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    assert reference.masked_smooth_l1(pred, targets)[0] == 4
    assert F.smooth_l1_loss(pred, targets, beta=0.0) == 2
