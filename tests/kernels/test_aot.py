"""Every kernel compiled ahead of time for sm_80 and sm_90 at real sizes: nothing may spill.

conftest.py shows the most that each kernel takes at the end of the run; ``pytest -s`` shows every variant.
"""

import aot
import pytest
from aot import MEASURED, Resources, compile_kernel
from d2v_kernels import masked_smooth_l1_triton as loss
from d2v_kernels import topk_instance_norm_mean_triton as topk

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
# fp16 takes the place of bf16 in the loss: it is what fairseq's --fp16 sends there
DTYPES = ["bf16", "fp32"]


def show(name, arch, r):
    print(f"\nsm_{arch} {name:52} {r.registers:4} registers {r.shared:7} B shared {r.threads:5} threads "
          f"{r.spills:4} B spilled", end="")


def compile_and_check(kernel, name, arguments, config, arch):
    config = dict(config)
    num_warps = config.pop("num_warps")
    resources = compile_kernel(kernel, {**arguments, **config}, arch, num_warps)
    show(name, arch, resources)
    MEASURED.setdefault((kernel.fn.__name__.strip("_"), arch), []).append(resources)
    assert resources.spills == 0
    # what a program may have on compute capability 8.6 and 8.9
    assert resources.shared <= 99 * 1024


def layer_arguments(dtype, **rest):
    pointers = {f"x{i}_ptr": f"*{dtype}" for i in range(topk.MAX_LAYERS)}
    common = {"out_ptr": "*fp32", "stride_xb": "i32*16", "stride_xt": "i32*16", "T": "i32", "C": "i32*16",
              "share": "fp32", "eps": "fp32", "lengths_ptr": None, "HAS_LENGTHS": False, "ADD": False}
    return {**pointers, **common, **rest}


def resident(dtype, K, T, channels, masked=True, **rest):
    arguments = layer_arguments(
        dtype, inverse_ptr="*i32" if masked else None, K=K, HAS_ROWS=masked, FINAL_INSTANCE=False,
        EVEN_C=channels % 128 == 0,
        WIDE=False,
    )
    return {**arguments, **rest}, topk.resident_config(K, T, channels, ITEMSIZE[dtype])


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K, T, C", [(8, 100, 768), (8, 499, 768), (8, 750, 768), (16, 750, 1024)])
def test_resident(arch, dtype, K, C, T):
    arguments, config = resident(dtype, K, T, C)
    compile_and_check(topk._resident_fwd_kernel, f"resident {dtype} K={K} T={T} C={C}", arguments, config, arch)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name, K, C, rest",
    [
        ("all frames", 8, 768, {"masked": False}),
        ("lengths", 8, 768, {"lengths_ptr": "*i64", "HAS_LENGTHS": True}),
        ("final instance", 8, 768, {"FINAL_INSTANCE": True}),
        ("second launch", 8, 768, {"ADD": True}),
        ("odd channels", 8, 100, {"C": "i32"}),
        ("one layer", 1, 768, {}),
        ("64-bit offsets", 8, 768, {"WIDE": True}),
    ],
)
def test_resident_variants(arch, dtype, name, K, C, rest):
    arguments, config = resident(dtype, K, 999, C, **rest)
    compile_and_check(topk._resident_fwd_kernel, f"resident {dtype} K={K} T=999 {name}", arguments, config, arch)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_inputs(arch, dtype):
    moments = {"mean_ptr": "*fp32", "rstd_ptr": "*fp32"}
    arguments = layer_arguments(dtype, **moments)
    compile_and_check(topk._statistics_fwd_kernel, f"statistics {dtype}", arguments, topk.STATISTICS_CONFIG, arch)
    arguments = layer_arguments(dtype, **moments, inverse_ptr="*i32", B="i32", K=8, HAS_ROWS=True)
    compile_and_check(topk._apply_fwd_kernel, f"apply {dtype} K=8", arguments, topk.APPLY_CONFIG, arch)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K, C, layer_norm, masked", [(16, 1024, True, True), (1, 768, False, False)])
def test_rows(arch, dtype, K, C, layer_norm, masked):
    arguments = layer_arguments(
        dtype, rows_ptr="*i64" if masked else None, R="i32", K=K, HAS_ROWS=masked, LAYER_NORM=layer_norm,
        FINAL_LAYER=True,
    )  # fmt: skip
    compile_and_check(topk._rows_fwd_kernel, f"rows {dtype} K={K} C={C}", arguments, topk.rows_config(C), arch)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(
    "name, masked, squared, save",
    [
        ("squared", False, True, False),
        ("smooth, gathered", True, False, False),
        ("squared, gathered, gradient saved", True, True, True),
    ],
)
def test_loss(arch, dtype, name, masked, squared, save):
    rows = "*i64" if masked else None
    arguments = {"pred_ptr": f"*{dtype}", "target_ptr": "*fp32", "pred_rows_ptr": rows, "target_rows_ptr": rows,
                 "loss_ptr": "*fp32", "moments_ptr": "*fp32", "slope_ptr": f"*{dtype}" if save else None,
                 "upstream_ptr": "*fp32", "grad_ptr": f"*{dtype}", "M": "i32", "C": "i32*16", "beta": "fp32",
                 "inverse_beta": "fp32", "scale": "fp32", "SQUARED": squared, "HAS_PRED_ROWS": masked,
                 "HAS_TARGET_ROWS": masked, "PRED_FLAT": not masked, "TARGET_FLAT": True, "SAVE_GRAD": save}
    for side in ("pred", "target"):
        arguments |= {f"{side}_inner": "i32", f"{side}_stride_outer": "i32*16", f"{side}_stride_inner": "i32*16"}
    for kernel, way in ((loss._masked_smooth_l1_fwd_kernel, "fwd"), (loss._masked_smooth_l1_bwd_kernel, "bwd")):
        compile_and_check(kernel, f"loss {way} {dtype} {name}", arguments, loss.BLOCK_CONFIG, arch)


@pytest.mark.parametrize("arch", [80, 90])
def test_merge(arch):
    arguments = {"partial_loss_ptr": "*fp32", "partial_moments_ptr": "*fp32", "loss_ptr": "*fp32",
                 "moments_ptr": "*fp32", "M": "i32", "C": "i32*16", "blocks": "i32", "partials": "i32",
                 "scale": "fp32", "BLOCK_M": loss.BLOCK_CONFIG["BLOCK_M"]}
    compile_and_check(loss._merge_kernel, "loss merge", arguments, loss.MERGE_CONFIG, arch)


def test_the_table_shows_the_most_of_each_kernel_and_architecture(monkeypatch):
    found = {("b", 90): [Resources(10, 0, 64, 128)], ("a", 80): [Resources(40, 0, 8, 128), Resources(30, 4, 16, 128)]}
    monkeypatch.setattr(aot, "MEASURED", found)
    first, second = (line.split() for line in aot.summary())
    assert first[:3] == ["sm_80", "a", "2"] and second[:3] == ["sm_90", "b", "1"]
    assert [word for word in first if word.isdigit()] == ["2", "40", "16", "4"]
