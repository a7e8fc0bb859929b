"""What the public functions refuse, each with one line that says what to change, and who runs where."""

import pytest
import torch
from d2v_kernels import dispatch, masked_smooth_l1, topk_instance_norm_mean


def layers(count=2, shape=(2, 9, 8), dtype=torch.float32):
    return [torch.randn(shape).to(dtype) for _ in range(count)]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: topk_instance_norm_mean([]), "layers is empty"),
        (lambda: topk_instance_norm_mean(layers(shape=(9, 8))), r"must be \(B, T, C\)"),
        (lambda: topk_instance_norm_mean(layers(1) + layers(1, (2, 8, 8))), "share shape"),
        (lambda: topk_instance_norm_mean(layers(1) + layers(1, dtype=torch.float16)), "share shape, dtype"),
        (lambda: topk_instance_norm_mean([x.transpose(1, 2) for x in layers()]), "channel stride 1"),
        (lambda: topk_instance_norm_mean(layers(dtype=torch.int32)), "float16, bfloat16 or float32"),
        (lambda: topk_instance_norm_mean(layers(shape=(2, 1, 8))), "at least 2 frames"),
        (lambda: topk_instance_norm_mean(layers(shape=(2, 1, 8)), layer_norm="layer", final_norm="instance"), "frames"),
        (lambda: topk_instance_norm_mean(layers(), layer_norm="batch"), "layer_norm must be one of"),
        (lambda: topk_instance_norm_mean(layers(), final_norm="group"), "final_norm must be one of"),
        (lambda: topk_instance_norm_mean(layers(), rows=torch.zeros(3)), r"rows must be \(M,\) int64"),
        (lambda: topk_instance_norm_mean(layers(), mask_indices=torch.zeros(9, 2) > 0), r"mask_indices must be"),
        (lambda: topk_instance_norm_mean(layers(), lengths=torch.tensor([3])), "lengths must be"),
        (lambda: topk_instance_norm_mean(layers(), lengths=torch.tensor([3.0, 2.0])), "lengths must be"),
        (
            lambda: topk_instance_norm_mean(
                layers(), rows=torch.tensor([1]), mask_indices=torch.zeros(2, 9, dtype=torch.bool)
            ),
            "pass one of them",
        ),
        (lambda: masked_smooth_l1(torch.randn(8), torch.randn(8)), "row dimension"),
        (lambda: masked_smooth_l1(torch.randn(3, 8), torch.randn(3, 9)), "share C"),
        (lambda: masked_smooth_l1(torch.randn(3, 8), torch.randn(4, 8)), "as many rows, got 3 and 4"),
        (lambda: masked_smooth_l1(torch.randn(8, 3).t(), torch.randn(3, 8)), "channel stride 1"),
        (lambda: masked_smooth_l1(torch.randn(3, 8), torch.randn(3, 8), beta=-1.0), "beta must be 0"),
        (lambda: masked_smooth_l1(torch.randn(3, 8), torch.randn(3, 8), beta=float("nan")), "beta must be 0"),
        (lambda: masked_smooth_l1(torch.randn(3, 8), torch.randn(3, 8), pred_rows=torch.ones(3)), "pred_rows must be"),
        (
            lambda: masked_smooth_l1(torch.randn(3, 8), torch.randn(3, 8), target_rows=torch.ones(3, 1).long()),
            "target_rows must be",
        ),
    ],
)
def test_refused(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_one_frame_is_enough_without_instance_norm():
    assert topk_instance_norm_mean(layers(shape=(2, 1, 8)), layer_norm="layer").shape == (2, 1, 8)


def test_cpu_runs_the_eager_twin_unless_the_interpreter_is_asked_for(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not dispatch.uses_triton(x)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.uses_triton(x) == dispatch.triton_available()
    monkeypatch.setattr(dispatch, "triton_available", lambda: False)
    assert not dispatch.uses_triton(x)
