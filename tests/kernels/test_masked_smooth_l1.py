"""masked_smooth_l1 on the device (a GPU, or Triton's interpreter) against fp64 and eager code."""

import math

import pytest
import torch
from accuracy import assert_as_accurate_as_eager
from d2v_kernels import masked_smooth_l1, reference
from d2v_kernels.masked_smooth_l1_triton import BLOCK_CONFIG, masked_smooth_l1_triton

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
UPSTREAM = 7.0


def run(function, pred, targets, **options):
    """loss, moments and the gradient of pred under an upstream gradient that is not 1."""
    pred = pred.detach().requires_grad_()
    out = function(pred, targets, **options)
    if not isinstance(out, tuple):
        out = (out.loss, out.stats.pred_mean, out.stats.pred_m2, out.stats.target_mean, out.stats.target_m2)
    (out[0] * UPSTREAM).backward()
    assert not any(x.requires_grad for x in out[1:])
    return [x.detach() for x in out] + [pred.grad]


def check(pred, targets, device, function=masked_smooth_l1, **options):
    """Loss, statistics and gradient of the kernel against both others; returns the kernel's."""
    on_device = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    # copy_ into the same strides: .to() would compact a slice
    moved = torch.empty_strided(pred.shape, pred.stride(), dtype=pred.dtype, device=device).copy_(pred)
    targets = targets.to(device)
    kernel = run(function, moved, targets, **on_device)
    on_device.pop("save_grad", None)
    eager = run(reference.masked_smooth_l1, moved, targets, **on_device)
    oracle = run(reference.masked_smooth_l1, moved.double(), targets.double(), **on_device)
    assert kernel[0].dtype == torch.float32 and kernel[0].dim() == 0
    assert kernel[-1].dtype == pred.dtype
    for k, e, o in zip(kernel, eager, oracle, strict=True):
        assert_as_accurate_as_eager(k, e, o)
    return [x.cpu() for x in kernel]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 100), (130, 768), (499, 100), (20, 1024)])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_shapes(shape, dtype, beta, device):
    check(torch.randn(shape).to(dtype), torch.randn(shape), device, beta=beta, scale=1 / math.sqrt(shape[1]))


def test_many_row_blocks_merge(device):
    rows = BLOCK_CONFIG["BLOCK_M"] * 33 + 5
    check(torch.randn(rows, 8) + 3, torch.randn(rows, 8) * 2 - 50, device)


@pytest.mark.parametrize("save_grad", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gathered_rows(save_grad, beta, device):
    B, T, C = 3, 40, 100
    pred = torch.randn(T, B, C).transpose(0, 1)
    pred_rows = torch.randperm(B * T)[:50]
    options = {"pred_rows": pred_rows, "beta": beta, "scale": 0.3, "save_grad": save_grad}
    # targets of the whole batch, of which the same rows are compared
    gradient = check(pred, torch.randn(B, T, C), device, masked_smooth_l1_triton, target_rows=pred_rows, **options)[-1]
    others = torch.ones(B * T, dtype=torch.bool).index_fill_(0, pred_rows, False)
    assert gradient.reshape(B * T, C)[others].eq(0).all()


@pytest.mark.parametrize("save_grad", [False, True])
def test_without_gather_writes_every_gradient(save_grad, device):
    options = {"pred_rows": None, "target_rows": None, "beta": 0.2, "scale": 1.0, "save_grad": save_grad}
    check(torch.randn(70, 100).half(), torch.randn(70, 100), device, masked_smooth_l1_triton, **options)


def test_clones_share_their_targets(device):
    clones, T, C = 4, 30, 100
    targets = torch.randn(T, C)
    pred = torch.randn(clones, T, C)
    pred_rows = torch.cat([clone * T + torch.randperm(T)[:9] for clone in range(clones)])
    kernel = check(pred, targets, device, pred_rows=pred_rows, target_rows=pred_rows % T)
    repeated = check(pred, targets.repeat(clones, 1), device, pred_rows=pred_rows, target_rows=pred_rows)
    assert all(torch.equal(a, b) for a, b in zip(kernel, repeated, strict=True))


@pytest.mark.parametrize("view", ["sliced", "transposed", "four dimensions"])
def test_views(view, device):
    if view == "sliced":
        pred = torch.randn(3, 12, 100)[:, 1:-1]
    elif view == "transposed":
        pred = torch.randn(10, 3, 100).transpose(0, 1)
    else:
        pred = torch.randn(3, 5, 4, 100)[:, :, ::2]
    check(pred, torch.randn(30, 100), device)


def test_errors_at_exactly_beta(device):
    beta = 0.25
    error = torch.tensor([-beta, 0.0, beta, 2 * beta, -2 * beta, beta / 2]).repeat(20, 1)
    targets = torch.randn(20, 6).mul(4).round().div(4)
    kernel = check(targets + error, targets, device, beta=beta)
    expected = torch.tensor([-1.0, 0.0, 1.0, 1.0, -1.0, 0.5]) * UPSTREAM
    assert torch.equal(kernel[-1], expected.repeat(20, 1))


@pytest.mark.parametrize("gathered", [False, True])
def test_nothing_masked(gathered, device):
    if gathered:
        none = torch.empty(0, dtype=torch.int64)
        kernel = check(torch.randn(5, 8), torch.randn(5, 8), device, pred_rows=none, target_rows=none)
    else:
        kernel = check(torch.randn(0, 8), torch.randn(0, 8), device)
    assert all(x.eq(0).all() for x in kernel)


def test_everything_masked(device):
    rows = torch.arange(60)
    pred, targets = torch.randn(2, 30, 100), torch.randn(2, 30, 100)
    all_named = check(pred, targets, device, pred_rows=rows, target_rows=rows)
    assert all(torch.equal(a, b) for a, b in zip(all_named, check(pred, targets, device), strict=True))


def test_mean_of_a_thousand_deviations_and_constant_channels(device):
    pred = torch.randn(300, 20) + 1000
    pred[:, 3] = 77.7
    targets = torch.randn(300, 20) - 1000
    targets[:, 4] = 0.0
    kernel = check(pred, targets, device)
    assert kernel[4][4] == 0 and kernel[2][3] < 1e-5


def test_fp16_near_overflow_and_loss_scaling(device):
    pred = torch.full((40, 16), 65504.0).half()
    pred[::2] *= -1
    check(pred, torch.zeros(40, 16), device, scale=1e-6)
    check(pred, torch.zeros(40, 16), device, beta=1.0, scale=1e-2)


def test_bf16_targets_and_unaligned_pointers(device):
    check(torch.randn(41, 100)[1:].half(), torch.randn(41, 100).bfloat16()[1:], device)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_nan_propagates(beta, device):
    pred = torch.randn(30, 8, device=device)
    pred[4, 2] = float("nan")
    loss, mean, m2, target_mean, target_m2, gradient = run(
        masked_smooth_l1, pred, torch.randn(30, 8, device=device), beta=beta
    )
    assert loss.isnan() and gradient[4, 2].isnan() and gradient.isnan().sum() == 1
    assert mean[2].isnan() and m2[2].isnan() and mean.isnan().sum() == 1 and m2.isnan().sum() == 1
    assert target_mean.isfinite().all() and target_m2.isfinite().all()


def test_stats_count_and_backward_twice(device):
    pred = torch.randn(12, 8, device=device, requires_grad=True)
    out = masked_smooth_l1(pred, torch.randn(12, 8, device=device))
    assert out.stats.count == 12
    first = torch.autograd.grad(out.loss, pred, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out.loss, pred)[0])


def test_targets_get_no_gradient(device):
    pred = torch.randn(12, 8, device=device, requires_grad=True)
    targets = torch.randn(12, 8, device=device, requires_grad=True)
    masked_smooth_l1(pred, targets).loss.backward()
    assert targets.grad is None and pred.grad is not None


def test_runs_repeat_bit_by_bit(device):
    pred, targets = torch.randn(300, 40, device=device), torch.randn(300, 40, device=device)
    first, second = (run(masked_smooth_l1, pred, targets) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [768, 1024])
@pytest.mark.parametrize("beta", [0.0, 0.25])
def test_real_sizes(dtype, channels, beta, device):
    pred = torch.randn(16, 750, channels).to(dtype)
    rows = (torch.rand(16 * 750) < 0.5).nonzero().squeeze(1)
    check(pred, torch.randn(len(rows), channels), device, pred_rows=rows, beta=beta, scale=1 / math.sqrt(channels))
