"""Regression loss with its statistics: eager, torch.compile and fused, forward, backward and both.

Useful bytes: the forward reads both sides once; the backward reads them again and writes the gradient of the rows that
take part. The provider fused_saved writes the gradient in the forward and rescales it in the backward; it is held
against the same bytes, so that percentages compare.
"""

import torch
import torch._functorch.config as functorch_config
from common import DTYPES, Rows, compiled, device_of, parser, rotating, wants
from d2v_kernels import reference

# frames in the batch, C; half of the frames are masked
SHAPES = [(12000, 768), (3000, 768), (12000, 1024), (3000, 1024)]
SMOKE = [(40, 32)]


def make_set(shape, dtype, device, gathered):
    """pred, targets and the rows: packed as v1 has them, or the masked rows of the whole batch."""
    N, C = shape
    M = N // 2
    rows = torch.randperm(N, device=device)[:M].sort().values if gathered else None
    pred = torch.randn(N if gathered else M, C, device=device).to(dtype).requires_grad_()
    return pred, torch.randn(N if gathered else M, C, device=device), rows


def useful_bytes(shape, dtype, mode):
    elements = shape[0] // 2 * shape[1]
    forward = elements * (dtype.itemsize + 4)
    backward = forward + elements * dtype.itemsize
    return {"fwd": forward, "bwd": backward, "both": forward + backward}[mode]


def providers(args, device, beta):
    def eager(pred, targets, rows):
        return reference.masked_smooth_l1(pred, targets, pred_rows=rows, target_rows=rows, beta=beta, scale=0.03)

    def fused(pred, targets, rows, save_grad=False):
        from d2v_kernels.masked_smooth_l1_triton import masked_smooth_l1_triton

        return masked_smooth_l1_triton(
            pred, targets, pred_rows=rows, target_rows=rows, beta=beta, scale=0.03, save_grad=save_grad
        )

    def fused_saved(pred, targets, rows):
        return fused(pred, targets, rows, save_grad=True)

    for name in wants(args, device):
        if name == "eager":
            yield name, eager
        elif name == "compile":
            yield name, compiled(eager)
        else:
            yield name, fused
            yield "fused_saved", fused_saved


def calls(fn, draw, upstream, sets):
    """The three modes of one provider; the backward reuses graphs that were built before timing."""

    def both():
        pred, targets, rows = draw()
        return torch.autograd.grad(fn(pred, targets, rows)[0], pred, upstream)

    graphs = iter(())

    def backward():
        nonlocal graphs
        turn = next(graphs, None)
        if turn is None:
            graphs = iter(sets())
            turn = next(graphs)
        loss, pred = turn
        return torch.autograd.grad(loss, pred, upstream, retain_graph=True)

    return {"fwd": lambda: fn(*draw()), "bwd": backward, "both": both}


def main() -> None:
    args = parser(__doc__.splitlines()[0]).parse_args()
    device = device_of(args)
    # the backward is timed alone, on graphs that are kept
    functorch_config.donated_buffer = False
    rows = Rows("masked_smooth_l1", args, device)
    upstream = torch.tensor(3.0, device=device)
    for shape in SMOKE if args.smoke else SHAPES:
        for dtype_name in args.dtypes:
            for gathered, beta in ((False, 0.0), (True, 0.25)):
                bench_case(args, rows, shape, dtype_name, gathered, beta, upstream, device)
    rows.write()


def bench_case(args, rows, shape, dtype_name, gathered, beta, upstream, device) -> None:
    dtype = DTYPES[dtype_name]
    set_bytes = shape[0] * shape[1] * (dtype.itemsize + 4)
    draw = rotating(lambda: make_set(shape, dtype, device, gathered), set_bytes, device)
    for name, fn in providers(args, device, beta):
        built: list = []

        def sets(fn=fn, built=built):
            # built once, at the first call, which is outside the timed ones
            if not built:
                for _ in range(2 if device == "cpu" else 16):
                    pred, targets, index = draw()
                    built.append((fn(pred, targets, index)[0], pred))
            return built

        for mode, call in calls(fn, draw, upstream, sets).items():
            what = {"N": shape[0], "M": shape[0] // 2, "C": shape[1], "rows": "gathered" if gathered else "packed",
                    "beta": beta, "dtype": dtype_name, "mode": mode, "provider": name}  # fmt: skip
            rows.add(what, call, useful_bytes(shape, dtype, mode), device)


if __name__ == "__main__":
    main()
