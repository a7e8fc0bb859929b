#!/usr/bin/env bash
# Style check, then every test, inside 15 minutes, a file of tests on each core. Extra arguments go to pytest:
# scripts/run_tests.sh tests/data -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BIN=${VENV:-.venv}/bin
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
CORES=$(getconf _NPROCESSORS_ONLN)
# each takes about a gigabyte
WORKERS=$((CORES < 8 ? CORES : 8))

"$BIN/ruff" check .
STATUS=0
timeout --foreground 900 "$BIN/python" -m pytest -q -n "$WORKERS" --dist loadfile "$@" || STATUS=$?
if [ "$STATUS" = 124 ]; then echo "d2v test: error: stopped after 15 minutes; is another job using the cores?" >&2; fi
exit "$STATUS"
