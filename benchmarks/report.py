"""One table of benchmark rows: ``python benchmarks/report.py [FILES]``; default: every file in benchmarks/results."""

import json
import sys
from pathlib import Path

HIDDEN = {"benchmark", "gpu", "torch", "triton", "commit", "date", "bytes", "ms", "p20", "p80", "event_ms", "peak_mib",
          "gbps", "copy_gbps", "percent_of_copy", "timer", "mode", "provider", "failed"}  # fmt: skip


def read(paths: list[Path]) -> list[dict]:
    """Rows of kernels; those of whole recipes (training_rates.py) have no provider."""
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines() if line.strip()]
    return [row for row in rows if "provider" in row]


def table(rows: list[dict]) -> str:
    """Rows as aligned text; the last column is the speed against torch.compile on the same case, where it ran."""
    compiled = {_case(r): r["ms"] for r in rows if r["provider"] == "compile" and "ms" in r}
    header = ["benchmark", "case", "mode", "provider", "ms", "p20", "p80", "GB/s", "% copy", "MiB", "x compile"]
    lines = [header]
    for r in rows:
        case = " ".join(f"{k}={v}" for k, v in r.items() if k not in HIDDEN)
        start = [r["benchmark"], case, r.get("mode", "fwd"), r["provider"]]
        if "failed" in r:
            lines.append([*start, "failed: " + r["failed"], "", "", "", "", "", ""])
            continue
        against = compiled.get(_case(r))
        lines.append([
            *start, f"{r['ms']:.4f}", f"{r['p20']:.4f}", f"{r['p80']:.4f}", f"{r['gbps']:.0f}",
            f"{r['percent_of_copy']:.0f}", f"{r['peak_mib']:.0f}" if "peak_mib" in r else "-",
            f"{against / r['ms']:.2f}" if against else "-",
        ])  # fmt: skip
    widths = [max(len(line[i]) for line in lines if not line[4].startswith("failed")) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _case(row: dict) -> tuple:
    return (row["benchmark"], row.get("mode"), *((k, v) for k, v in sorted(row.items()) if k not in HIDDEN))


def main() -> int:
    paths = [Path(p) for p in sys.argv[1:]] or sorted((Path(__file__).parent / "results").glob("*.jsonl"))
    if not paths:
        print("benchmarks: no rows yet; run benchmarks/run_gpu.sh on a machine with a GPU", file=sys.stderr)
        return 1
    rows = read(paths)
    for gpu, torch, triton, commit, date in sorted({
        (r["gpu"], r["torch"], r["triton"], r["commit"], r["date"]) for r in rows
    }):
        print(f"{gpu}, torch {torch}, triton {triton}, commit {commit}, {date}")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
