#!/usr/bin/env bash
# Style check, then every test, inside 15 minutes. Extra arguments go to pytest: scripts/run_tests.sh tests/data -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BIN=${VENV:-.venv}/bin
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

"$BIN/ruff" check .
STATUS=0
timeout --foreground 900 "$BIN/python" -m pytest -q "$@" || STATUS=$?
if [ "$STATUS" = 124 ]; then echo "d2v test: error: stopped after 15 minutes; is another job using the cores?" >&2; fi
exit "$STATUS"
