"""topk_instance_norm_mean on the device (a GPU, or Triton's interpreter) against fp64 and eager code."""

import pytest
import torch
from accuracy import assert_as_accurate_as_eager
from d2v_kernels import reference, topk_instance_norm_mean
from d2v_kernels import topk_instance_norm_mean_triton as triton_side

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def make_layers(K, B, T, C, dtype=torch.float32, mean=0.5, std=2.0, view="transposed"):
    """K layers as models hand them over: transposed from (T, B, C), sliced past extra tokens, or contiguous."""
    layers = []
    for _ in range(K):
        if view == "transposed":
            x = torch.randn(T, B, C).transpose(0, 1)
        elif view == "sliced":
            x = torch.randn(B, T + 2, C)[:, 1:-1]
        else:
            x = torch.randn(B, T, C)
        layers.append((x * std + mean).to(dtype))
        assert layers[-1].stride(-1) == 1
    return layers


def check(layers, device, **options):
    """Run all three on the same rounded inputs; returns the kernel's output on the host."""
    on_device = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    moved = []
    for x in layers:
        # .to() would keep the strides of dense tensors only
        y = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
        moved.append(y.copy_(x))
    kernel = topk_instance_norm_mean(moved, **on_device)
    assert kernel.dtype == torch.float32 and not kernel.requires_grad and kernel.is_contiguous()
    eager_options = on_device
    if "mask_indices" in eager_options:
        eager_options["rows"] = eager_options.pop("mask_indices").reshape(-1).nonzero().squeeze(1)
    eager = reference.topk_instance_norm_mean(moved, **eager_options)
    oracle = reference.topk_instance_norm_mean([x.double() for x in moved], **eager_options)
    assert_as_accurate_as_eager(kernel, eager, oracle)
    return kernel.cpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 2, 100), (3, 2, 37, 100), (2, 1, 499, 40), (8, 2, 20, 768)])
@pytest.mark.parametrize("view", ["transposed", "sliced"])
def test_shapes_and_views(shape, dtype, view, device):
    check(make_layers(*shape, dtype=dtype, view=view), device)


@pytest.mark.parametrize("layer_norm", ["instance", "layer", "none"])
@pytest.mark.parametrize("final_norm", ["none", "layer", "instance"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_every_recipe(layer_norm, final_norm, masked, with_lengths, device):
    options = {"layer_norm": layer_norm, "final_norm": final_norm}
    if masked:
        options["mask_indices"] = torch.rand(3, 37) < 0.5
    if with_lengths:
        options["lengths"] = torch.tensor([37, 18, 5])
    check(make_layers(3, 3, 37, 100), device, **options)


@pytest.mark.parametrize("final_norm", ["none", "layer", "instance"])
def test_longer_than_resident(final_norm, device):
    T = triton_side.RESIDENT_FRAMES + 76
    layers = make_layers(2, 2, T, 20, dtype=torch.bfloat16)
    check(layers, device, final_norm=final_norm, rows=torch.randperm(2 * T)[:50], lengths=torch.tensor([T, T - 900]))
    check(layers, device, final_norm=final_norm)


def test_more_layers_than_one_launch_and_mixed_strides(device):
    layers = make_layers(18, 2, 9, 24) + make_layers(2, 2, 9, 24, view="sliced")
    rows = torch.randperm(18)[:7]
    for layer_norm in ("instance", "layer"):
        for final_norm in ("none", "layer", "instance"):
            check(layers, device, layer_norm=layer_norm, final_norm=final_norm, rows=rows)


def test_rows_keep_their_order_and_may_be_none_or_all(device):
    layers = make_layers(2, 2, 11, 40)
    everything = check(layers, device)
    order = torch.randperm(22)
    assert torch.equal(check(layers, device, rows=order), everything.view(22, 40)[order])
    mask = torch.zeros(2, 11, dtype=torch.bool)
    assert check(layers, device, mask_indices=mask).shape == (0, 40)
    assert torch.equal(check(layers, device, mask_indices=~mask), everything.view(22, 40))


def test_lengths_hide_what_padding_holds(device):
    layers = make_layers(2, 3, 20, 40)
    lengths = torch.tensor([20, 7, 1])
    clean = check(layers, device, lengths=lengths)
    for x in layers:
        x[1, 7:] = float("nan")
        x[2, 1:] = float("inf")
    assert torch.equal(check(layers, device, lengths=lengths), clean)
    assert clean[1, 7:].eq(0).all() and clean[2, 1:].eq(0).all()
    # a length above T counts as T, and an empty sample is all zeros
    beyond = check(layers[:1], device, lengths=torch.tensor([99, 7, 0]))
    assert torch.equal(beyond[0], check([layers[0][:1]], device)[0]) and beyond[2].eq(0).all()


@pytest.mark.parametrize("T", [50, triton_side.RESIDENT_FRAMES + 26])
def test_constant_channels_are_zero(T, device):
    layers = make_layers(2, 1, T, 20)
    for x in layers:
        x[..., 3] = 1234.567
        x[..., 4] = 0.0
    y = check(layers, device)
    assert y[..., 4].eq(0).all() and y[..., 3].abs().max() < 0.05


def test_resident_constant_channel_is_exact(device):
    layers = make_layers(2, 1, 50, 20)
    layers[0][...] = 1234.567
    layers[1][...] = -0.1
    assert topk_instance_norm_mean([x.to(device) for x in layers]).abs().max() < 1e-6


@pytest.mark.parametrize("T", [60, triton_side.RESIDENT_FRAMES + 26])
def test_mean_of_a_thousand_deviations(T, device):
    check(make_layers(2, 1, T, 20, mean=1000.0, std=1.0), device)


def test_fp16_near_overflow(device):
    layers = make_layers(2, 1, 40, 20, dtype=torch.float16, std=15000.0)
    for x in layers:
        x.clamp_(-65504, 65504)
        x[0, :3] = 65504
    for layer_norm in ("instance", "layer", "none"):
        check(layers, device, layer_norm=layer_norm)


def test_nan_stays_in_its_channel(device):
    layers = [x.to(device) for x in make_layers(2, 2, 10, 20)]
    layers[1][1, 4, 7] = float("nan")
    y = topk_instance_norm_mean(layers)
    assert y[1, :, 7].isnan().all() and y.isnan().sum() == 10


def test_offsets_beyond_32_bits(device, monkeypatch):
    # strides alone: nothing of this size is allocated
    far = torch.empty_strided((2, 1024, 8), (8, 2**21, 1), device="meta")
    assert triton_side._is_wide(far, 1024)
    layers = make_layers(2, 2, 20, 24)
    assert not triton_side._is_wide(layers[0], 1024)
    narrow = check(layers, device)
    monkeypatch.setattr(triton_side, "_is_wide", lambda x, block_t: True)
    assert torch.equal(check(layers, device), narrow)


def test_eps(device):
    check(make_layers(2, 1, 30, 20, std=1e-3), device, eps=1e-3)


def test_runs_repeat_bit_by_bit(device):
    layers = [x.to(device) for x in make_layers(3, 2, 37, 40, dtype=torch.bfloat16)]
    assert torch.equal(topk_instance_norm_mean(layers), topk_instance_norm_mean(layers))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 16, 750, 768), (16, 4, 750, 1024), (8, 12, 999, 768), (8, 4, 2999, 768)])
def test_real_sizes(shape, dtype, device):
    layers = make_layers(*shape, dtype=dtype)
    check(layers, device)
    check(layers, device, final_norm="layer", mask_indices=torch.rand(*shape[1:3]) < 0.5)
