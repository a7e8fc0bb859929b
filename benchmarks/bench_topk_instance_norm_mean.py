"""Teacher targets: eager, torch.compile and fused, with GB/s against a copy of the same run.

Useful bytes are every layer read once and the rows asked for written once in fp32. --sweep times tile sizes of the
resident kernel instead.
"""

import math

import torch
from common import DTYPES, Rows, compiled, device_of, parser, rotating, wants
from d2v_kernels import reference, topk_instance_norm_mean

# K, B, T, C: base and large at B*T of about 12k and 3k, full crops, then other lengths at base size
SHAPES = [
    (8, 16, 750, 768),
    (8, 4, 750, 768),
    (16, 16, 750, 1024),
    (16, 4, 750, 1024),
    (8, 12, 999, 768),
    (8, 24, 499, 768),
    (8, 4, 3000, 768),
]
SMOKE = [(2, 2, 20, 32)]
TILES = [
    (block_t, block_c, warps, stages)
    for block_t, block_c, warps in [
        (512, 16, 8), (512, 32, 8), (512, 32, 16), (1024, 8, 8), (1024, 16, 8), (1024, 16, 16), (1024, 16, 32),
        (1024, 32, 16), (1024, 32, 32),
    ]
    for stages in (1, 2, 3, 4)
]  # fmt: skip


def make_set(shape, dtype, device, masked):
    K, B, T, C = shape
    # v1's layer results are (T, B, C), seen as (B, T, C)
    layers = [torch.randn(T, B, C, device=device).to(dtype).transpose(0, 1) for _ in range(K)]
    rows = torch.randperm(B * T, device=device)[: B * T // 2].sort().values if masked else None
    return layers, rows


def useful_bytes(shape, dtype, masked):
    K, B, T, C = shape
    return B * T * C * K * dtype.itemsize + B * T // (2 if masked else 1) * C * 4


def providers(args, device):
    eager = reference.topk_instance_norm_mean
    for name in wants(args, device):
        yield name, {"eager": eager, "fused": topk_instance_norm_mean}.get(name) or compiled(eager)


def sweep(rows, args, device):
    from d2v_kernels import topk_instance_norm_mean_triton as kernels

    for shape in (SMOKE if args.smoke else SHAPES):
        if shape[2] > kernels.RESIDENT_FRAMES:
            continue
        dtype = DTYPES[args.dtypes[0]]
        size = useful_bytes(shape, dtype, True)
        draw = rotating(lambda s=shape, d=dtype: make_set(s, d, device, True), size, device)
        chosen = kernels.resident_config
        for block_t, block_c, warps, stages in TILES:
            if block_t < shape[2] or block_t >= 4 * shape[2]:
                continue
            tile = {"BLOCK_T": block_t, "BLOCK_C": block_c, "num_warps": warps, "STAGES": stages}
            kernels.resident_config = lambda *_, tile=tile: tile
            what = dict(zip("KBTC", shape, strict=True)) | {"dtype": args.dtypes[0], "provider": "fused"} | tile
            rows.add(what, lambda draw=draw: _call(topk_instance_norm_mean, draw), size, device)
        kernels.resident_config = chosen


def _call(fn, draw):
    layers, rows = draw()
    return fn(layers, rows=rows)


def main() -> None:
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--sweep", action="store_true", help="time tile sizes of the resident kernel")
    args = p.parse_args()
    device = device_of(args)
    rows = Rows("topk_instance_norm_mean" + ("_sweep" if args.sweep else ""), args, device)
    if args.sweep:
        sweep(rows, args, device)
        rows.write()
        return
    for shape in SMOKE if args.smoke else SHAPES:
        for dtype_name in args.dtypes:
            dtype = DTYPES[dtype_name]
            for masked in (False, True):
                size = useful_bytes(shape, dtype, masked)
                draw = rotating(
                    lambda s=shape, d=dtype, m=masked: make_set(s, d, device, m),
                    math.prod(shape) * dtype.itemsize, device,
                )  # fmt: skip
                for name, fn in providers(args, device):
                    what = dict(zip("KBTC", shape, strict=True))
                    what |= {"rows": "half" if masked else "all", "dtype": dtype_name, "mode": "fwd", "provider": name}
                    rows.add(what, lambda fn=fn, draw=draw: _call(fn, draw), size, device)
    rows.write()


if __name__ == "__main__":
    main()
