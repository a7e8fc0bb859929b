"""What every benchmark shares: timing, the copy rate of the same run, and the rows that are written."""

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from d2v_kernels.dispatch import interpreter_requested

ROOT = Path(__file__).parent.parent
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# several times the largest L2 there is, so that no input is still cached when its turn comes again
ROTATED_BYTES = 512 * 2**20


def parser(description: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--smoke", action="store_true", help="tiny shapes, any device: shows that the script works")
    p.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["bf16"])
    p.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    p.add_argument("--out", type=Path, default=None, help="JSON lines; default: benchmarks/results/<name>_<gpu>.jsonl")
    return p


def device_of(args: argparse.Namespace) -> str:
    """The device to measure on. Only a smoke run may do without a GPU: numbers of a CPU would mean nothing here."""
    if torch.cuda.is_available():
        return "cuda"
    if not args.smoke:
        raise SystemExit("benchmarks: error: no CUDA device; pass --smoke to try the script without one")
    return "cpu"


def environment(device: str) -> dict[str, str]:
    """What must stand beside a number for it to be worth keeping."""
    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = "none"
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else f"none ({platform.machine()})",
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": os.environ.get("D2V_COMMIT") or _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    result = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"


def rotating(make: Callable[[], object], set_bytes: int, device: str) -> Callable[[], object]:
    """Returns a function that hands out input sets in turn, of more bytes in all than any cache."""
    count = 2 if device == "cpu" else max(2, -(-ROTATED_BYTES // max(1, set_bytes)))
    sets = itertools.cycle([make() for _ in range(min(count, 64))])
    return lambda: next(sets)


def measure(fn: Callable[[], object], device: str) -> dict[str, object]:
    """Milliseconds of one call (median, p20, p80) and the memory it needs beyond what exists before it.

    On a GPU ms is device time, of calls replayed from a CUDA graph, and event_ms is time between events around calls
    made from Python, launches included (triton.testing.do_bench). Where capture fails ms repeats event_ms, and timer
    says so.
    """
    if device == "cpu":
        return _measure_on_host(fn)
    from triton.testing import do_bench

    # One side stream for everything: autograd runs a backward on the stream of its forward, and a capture must not
    # meet work on another.
    stream = _side_stream()
    with torch.cuda.stream(stream):
        fn()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        fn()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        times = event = do_bench(fn, warmup=25, rep=100, quantiles=[0.5, 0.2, 0.8])
        timer = "events"
        try:
            times, timer = _graph_times(fn, stream), "graph"
        except RuntimeError as error:
            print(f"  not captured, timed with events: {str(error).splitlines()[0]}")
            torch.cuda.synchronize()
    return {"ms": times[0], "p20": times[1], "p80": times[2], "timer": timer, "event_ms": event[0], "peak_mib": peak}


@lru_cache(maxsize=1)
def _side_stream():
    return torch.cuda.Stream()


def _measure_on_host(fn: Callable[[], object]) -> dict[str, object]:
    fn()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        fn()
        times.append((time.perf_counter() - start) * 1e3)
    return {"ms": statistics.median(times), "p20": min(times), "p80": max(times), "timer": "host"}


def _graph_times(fn: Callable[[], object], stream, calls: int = 20, replays: int = 25) -> list[float]:
    """Median, p20 and p80 over replays of a graph of several calls, each divided by their number."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            fn()
    for _ in range(3):
        graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) / calls for start, end in events)
    return [times[replays // 2], times[replays // 5], times[replays * 4 // 5]]


def copy_rate(device: str) -> float:
    """GB/s of a large device-to-device copy, bytes read plus bytes written: the ceiling of a memory-bound kernel."""
    count = 2**20 if device == "cpu" else 2**29
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure(lambda: target.copy_(source), device)["ms"] / 1e6


class Rows:
    """Collects rows, prints them as they come, and writes them as JSON lines."""

    def __init__(self, name: str, args: argparse.Namespace, device: str):
        self.common = {"benchmark": name, **environment(device)}
        self.copy_gbps = copy_rate(device)
        folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "benchmarks" / "results"
        gpu = self.common["gpu"].replace(" ", "-").replace("(", "").replace(")", "")
        self.path = args.out or folder / f"{name}_{gpu}.jsonl"
        self.rows: list[dict] = []
        print(f"{name}: {self.common['gpu']}, torch {self.common['torch']}, triton {self.common['triton']}, "
              f"copy {self.copy_gbps:.0f} GB/s")  # fmt: skip

    def add(self, what: dict, fn: Callable[[], object] | None, useful_bytes: int, device: str) -> None:
        """Measure fn and add a row; a provider that fails gets a row that says why, and the others go on."""
        try:
            numbers = measure(fn, device)
        except (RuntimeError, TypeError, ValueError) as error:
            numbers = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        else:
            gbps = useful_bytes / numbers["ms"] / 1e6
            numbers |= {"gbps": gbps, "copy_gbps": self.copy_gbps, "percent_of_copy": 100 * gbps / self.copy_gbps}
        self.rows.append({**self.common, **what, "bytes": useful_bytes, **numbers})
        label = " ".join(f"{k}={v}" for k, v in what.items())
        if "failed" in numbers:
            print(f"  {label}: FAILED {numbers['failed']}", flush=True)
        else:
            print(f"  {label}: {numbers['ms']:.4f} ms, {numbers['gbps']:.0f} GB/s, "
                  f"{numbers['percent_of_copy']:.0f} % of copy ({numbers['timer']})", flush=True)  # fmt: skip

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        print(f"wrote {len(self.rows)} rows to {self.path}")


def compiled(fn: Callable) -> Callable:
    """torch.compile of an eager twin, for one shape at a time as a training run with fixed crops would have it."""
    torch._dynamo.reset()
    return torch.compile(fn, dynamic=False)


def wants(args: argparse.Namespace, device: str) -> Sequence[str]:
    """Providers of this run. On a CPU fused needs TRITON_INTERPRET=1, and torch.compile would spend minutes on C++."""
    if device == "cpu":
        return ["eager", "fused"] if interpreter_requested() else ["eager"]
    return ["eager", "fused"] if args.no_compile else ["eager", "compile", "fused"]
