"""The benchmark scripts run, without a GPU too, and say so when they need one. Their numbers are not looked at."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from d2v_plugin.planning.hours import measured

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# no GPU: the smoke run stays small on any machine, and the kernels go through the interpreter
ENVIRONMENT = dict(os.environ, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")


def run(*command, **environment):
    return subprocess.run(
        [str(part) for part in command], env={**ENVIRONMENT, **environment}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", sorted(p.name for p in BENCHMARKS.glob("bench_*.py")))
def test_smoke_run_writes_rows_that_the_report_reads(script, tmp_path):
    out = tmp_path / "rows.jsonl"
    result = run(sys.executable, BENCHMARKS / script, "--smoke", "--out", out, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {"eager", "fused"} <= {row["provider"] for row in rows}
    for row in rows:
        assert "failed" not in row
        assert row["ms"] > 0 and row["gbps"] > 0 and row["percent_of_copy"] > 0
        assert {"gpu", "dtype", "torch", "triton", "commit", "date", "p20", "p80"} <= set(row)
    report = run(sys.executable, BENCHMARKS / "report.py", out)
    assert report.returncode == 0 and report.stdout.count("\n") >= len(rows) + 2


def test_failed_provider_stands_in_the_table(tmp_path):
    row = {"benchmark": "b", "gpu": "g", "torch": "2", "triton": "3", "commit": "c", "date": "d", "T": 7,
           "mode": "fwd", "provider": "compile", "failed": "RuntimeError: no compiler"}  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert "no compiler" in run(sys.executable, BENCHMARKS / "report.py", tmp_path / "rows.jsonl").stdout


def test_rates_of_recipes_are_for_plan_and_not_for_the_report(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    rates = importlib.import_module("training_rates")
    row = {"recipe": "x", "gpu": "Big GPU", "date": "2026-01-01", "commit": "a", "units_per_second": 3.0}
    rates.keep(row, tmp_path / "results", "Big GPU")
    assert measured(SimpleNamespace(name="x"), "big", tmp_path / "results").per_gpu == 3.0
    kernel = {"benchmark": "b", "gpu": "g", "torch": "2", "triton": "3", "commit": "c", "date": "d",
              "mode": "fwd", "provider": "compile", "failed": "no compiler"}  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(kernel))
    report = run(sys.executable, BENCHMARKS / "report.py", tmp_path / "rows.jsonl", *(tmp_path / "results").iterdir())
    assert report.returncode == 0 and "no compiler" in report.stdout and "Big" not in report.stdout


@pytest.mark.parametrize("command", [["run_gpu.sh"], ["bench_topk_instance_norm_mean.py"]])
def test_without_a_gpu_they_say_so(command, tmp_path):
    program = [BENCHMARKS / command[0]] if command[0].endswith(".sh") else [sys.executable, BENCHMARKS / command[0]]
    result = run(*program, PYTHON=sys.executable, OUT=tmp_path)
    assert result.returncode != 0
    assert "no CUDA device" in result.stderr
    assert not list(tmp_path.iterdir())
