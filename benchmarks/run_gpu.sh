#!/usr/bin/env bash
# Everything that needs a GPU, in one command, in under 10 minutes and without a network:
#   benchmarks/run_gpu.sh [DIRECTORY_OF_WHEELS]        default: .whl, where it exists
# installs the wheels into a temporary folder, runs every GPU test, then every benchmark, and prints one table. JSON
# rows go to $OUT where it is set, else to benchmarks/results. PYTHON= picks the interpreter; it must hold CUDA torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
WHEELS=${1:-.whl}
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
SECONDS=0

die() { echo "run_gpu: error: $*" >&2; exit 2; }

command -v "$PYTHON" >/dev/null || die "no $PYTHON here; PYTHON=/path/to/python picks another"
"$PYTHON" -c 'import torch' 2>/dev/null || die "$PYTHON cannot import torch; PYTHON= picks another interpreter"
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  die "no CUDA device that torch sees, and a CPU would measure nothing; without one, make test runs these tests interpreted"

if [ -d "$WHEELS" ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$SCRATCH/site" "$WHEELS"/*.whl
elif [ $# -gt 0 ]; then
  die "no directory $WHEELS"
fi
# The package as it is imported when installed, without installing it: d2v_kernels is the folder kernels/.
mkdir -p "$SCRATCH/path"
ln -s "$PWD/kernels" "$SCRATCH/path/d2v_kernels"
export PYTHONPATH="$SCRATCH/path:$SCRATCH/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
"$PYTHON" -c 'import pytest, triton' 2>/dev/null || die "pytest and triton are needed: put their wheels into $WHEELS"

RESULTS=${OUT:-benchmarks/results}
mkdir -p "$RESULTS"
STATUS=0

# The folder's own settings only: tests elsewhere need packages that this machine may lack. Tests that compile or
# interpret kernels need no GPU and run in CI.
echo "== tests on $("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name())')"
timeout 240 "$PYTHON" -m pytest -q -p no:cacheprovider --import-mode=importlib --confcutdir=tests/kernels tests/kernels \
  --deselect tests/kernels/test_interpreter.py --deselect tests/kernels/test_aot.py 2>&1 | tee "$SCRATCH/tests.log" ||
  STATUS=1
# Masks must not depend on the device they are drawn on. This folder needs fairseq, so only where that is.
if "$PYTHON" -c 'import fairseq' 2>/dev/null; then
  timeout 120 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/method 2>&1 | tee -a "$SCRATCH/tests.log" || STATUS=1
fi
cp "$SCRATCH/tests.log" "$RESULTS/gpu_tests.txt"
[ "$STATUS" = 0 ] || echo "run_gpu: tests failed; numbers below are of kernels that are wrong somewhere" >&2

for bench in benchmarks/bench_*.py; do
  left=$((570 - SECONDS))
  [ "$left" -gt 20 ] || { echo "run_gpu: out of time before $bench" >&2; STATUS=1; break; }
  echo "== $bench ($left s left)"
  timeout "$left" "$PYTHON" "$bench" || { echo "run_gpu: $bench failed" >&2; STATUS=1; }
done

echo "== table"
"$PYTHON" benchmarks/report.py "$RESULTS"/*.jsonl || STATUS=1
echo "run_gpu: $SECONDS s, rows in $RESULTS"
exit "$STATUS"
