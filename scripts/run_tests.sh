#!/usr/bin/env bash
# Style check, then every test, inside 15 minutes. Extra arguments go to pytest: scripts/run_tests.sh tests/data -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BIN=${VENV:-.venv}/bin
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

"$BIN/ruff" check .
# Tests that need a GPU are chosen by the machine, so that none is ever reported as skipped.
SELECT=(-m "not gpu")
if "$BIN/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then SELECT=(); fi

STATUS=0
timeout --foreground 900 "$BIN/python" -m pytest -q "${SELECT[@]}" "$@" || STATUS=$?
if [ "$STATUS" = 124 ]; then echo "d2v test: error: stopped after 15 minutes; is another job using the cores?" >&2; fi
exit "$STATUS"
