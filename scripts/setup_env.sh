#!/usr/bin/env bash
# Makes .venv with everything this project needs, or does nothing when it is already there.
#
# Settings, all optional, from the environment or from make's command line:
#   PYTHON       interpreter to use (default: the newest of python3.13, 3.12, 3.11, python3 that runs)
#   TORCH        what pip shall install as torch, for example TORCH=torch==2.9.1
#   TORCH_INDEX  package index for the CPU build of torch, asked only when there is no NVIDIA GPU;
#                empty: the default index, whose Linux build carries CUDA libraries (gigabytes, runs on a CPU too)
#   VENV         folder of the virtual environment (default: .venv)
#   DRY_RUN=1    print what would be done, and change nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-}
TORCH=${TORCH:-}
DEFAULT_TORCH="torch==2.13.0"
TORCH_INDEX=${TORCH_INDEX-https://download.pytorch.org/whl/cpu}
FAIRSEQ="fairseq-fixed==0.12.3.1"
# CUDA builds of torch bring the Triton they were made with. The CPU build takes any, and the tests assemble kernels
# with this one. The ptxas of 3.8 squeezes one kernel for sm_90 into 64 of its 128 registers and spills 8 bytes; that
# of 3.9 does not. A spill costs time, not digits, so setup.py sets no bound.
CPU_TRITON="triton!=3.8.*"
VENV=${VENV:-.venv}
DRY_RUN=${DRY_RUN:-0}
STAMP="$VENV/d2v-setup"
LOG="$VENV/setup.log"

say() { printf 'd2v setup: %s\n' "$*"; }

# die MESSAGE: one line that names the trouble and the command that cures it.
die() {
    printf 'd2v setup: error: %s\n' "$*" >&2
    exit 2
}

# A pyenv shim exists for every version it knows of and fails for those not switched on, so run each candidate.
python_runs() {
    "$1" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13)))' >/dev/null 2>&1
}

choose_python() {
    local candidate
    if [ -n "$PYTHON" ]; then
        python_runs "$PYTHON" ||
            die "PYTHON=$PYTHON does not run or is not Python 3.11, 3.12 or 3.13; name one that is, or leave PYTHON out"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3; do
        if python_runs "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 found; install one (sudo apt-get install python3 python3-venv python3-dev)" \
        "or name it with PYTHON=/path/to/python3"
}

# need_tool COMMAND PACKAGE
need_tool() {
    command -v "$1" >/dev/null 2>&1 || die "$1 is missing; install it with: sudo apt-get install $2"
}

# fairseq-fixed has a wheel for CPython 3.12 on x86-64 Linux and is compiled everywhere else.
check_tools() {
    local python=$1 version header
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    need_tool git git
    need_tool gcc gcc
    "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        die "Python's venv module is missing; install it with: sudo apt-get install python$version-venv"
    if [ "$version" != 3.12 ] || [ "$(uname -m)" != x86_64 ]; then
        need_tool g++ g++
        header=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
        [ -f "$header" ] ||
            die "Python's headers are missing; install them with: sudo apt-get install python$version-dev"
    fi
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; }

# What decides the contents of the environment besides TORCH: the declared requirements and this script.
requirements_key() { cat setup.py pyproject.toml scripts/setup_env.sh | sha256sum | cut -c1-16; }

# recorded FIELD: its value in the stamp of the last complete set-up, or nothing.
recorded() { [ ! -f "$STAMP" ] || sed -n "s|^$1=||p" "$STAMP"; }

# up_to_date: the environment in place serves; an explicit PYTHON or TORCH that differs does not.
up_to_date() {
    [ -x "$VENV/bin/python" ] && [ "$(recorded key)" = "$(requirements_key)" ] && [ "$(recorded root)" = "$PWD" ] || return 1
    [ -z "$TORCH" ] || [ "$(recorded torch)" = "$TORCH" ] || return 1
    [ -z "$PYTHON" ] || same_python || return 1
    # A machine that has gained a GPU gets the CUDA build, unless somebody chose torch by hand.
    if [ "$(recorded build)" = cpu ] && [ "$(recorded torch)" = "$DEFAULT_TORCH" ] && has_gpu; then return 1; fi
}

python_version() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }

same_python() { [ "$(python_version "$PYTHON")" = "$(python_version "$VENV/bin/python")" ]; }

# step TITLE COMMAND...: run quietly, show the end of the log on failure.
step() {
    local title=$1 started=$SECONDS
    shift
    say "$title"
    if [ "$DRY_RUN" = 1 ]; then
        say "  would run: $*"
        return
    fi
    printf '\n$ %s\n' "$*" >>"$LOG"
    if ! "$@" >>"$LOG" 2>&1; then
        tail -n 25 "$LOG" >&2
        die "this step failed: $title; the whole output is in $LOG"
    fi
    say "  done in $((SECONDS - started)) s"
}

pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# reachable URL: asked once and briefly, because pip retries an unreachable index for minutes.
reachable() {
    "$VENV/bin/python" - "$1" <<'PY' >/dev/null 2>&1
import sys
import urllib.request

with urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/torch/", method="HEAD"), timeout=5):
    pass
PY
}

install_torch() {
    local want=$1 build=$2
    if [ "$build" = cpu ] && [ -n "$TORCH_INDEX" ] && { [ "$DRY_RUN" = 1 ] || reachable "$TORCH_INDEX"; }; then
        step "2/5 torch for the CPU ($want from $TORCH_INDEX)" \
            pip install "$want" --index-url "$TORCH_INDEX"
    else
        step "2/5 torch ($want from pip's default index, which may be the CUDA build of several gigabytes)" pip install "$want"
    fi
}

write_stamp() {
    [ "$DRY_RUN" != 1 ] || return 0
    printf 'key=%s\nroot=%s\ntorch=%s\nbuild=%s\n' "$(requirements_key)" "$PWD" "$1" "$2" >"$STAMP.tmp"
    mv "$STAMP.tmp" "$STAMP"
}

report() {
    [ "$DRY_RUN" != 1 ] || return 0
    "$VENV/bin/d2v" env
    if [ "$1" = cuda ] && ! "$VENV/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        say "note: torch does not see the GPU that nvidia-smi shows; if its driver is too old for this build," \
            "choose an older torch, for example: make setup TORCH=torch==2.9.1"
    fi
}

main() {
    if up_to_date; then
        say "$VENV is up to date"
        return
    fi
    local python torch build=cpu
    python=$(choose_python)
    check_tools "$python"
    if has_gpu; then build=cuda; fi
    torch=${TORCH:-$(recorded torch)}
    torch=${torch:-$DEFAULT_TORCH}

    if [ ! -x "$VENV/bin/python" ] || [ "$(recorded root)" != "$PWD" ] || { [ -n "$PYTHON" ] && ! same_python; }; then
        say "1/5 $VENV with $python ($("$python" -c 'import platform; print(platform.python_version())'))"
        [ "$DRY_RUN" = 1 ] || "$python" -m venv --clear "$VENV"
    else
        say "1/5 $VENV is there"
        # A CPU build satisfies the same requirement, so pip would keep it.
        if [ "$(recorded build)" = cpu ] && [ "$build" = cuda ]; then step "    without its CPU torch" pip uninstall -y torch; fi
    fi
    # An interrupted set-up must not look complete.
    [ "$DRY_RUN" = 1 ] || rm -f "$STAMP"
    install_torch "$torch" "$build"
    # torch is named again below, so that no requirement of another package can exchange it.
    step "3/5 build tools" pip install --upgrade pip setuptools wheel cython numpy
    step "4/5 $FAIRSEQ (compiles for about 2 minutes, except on Python 3.12)" \
        pip install --no-build-isolation "$FAIRSEQ" "$torch"
    local limits=()
    if [ "$build" = cpu ]; then
        limits=(-c "$VENV/constraints.txt")
        [ "$DRY_RUN" = 1 ] || printf '%s\n' "$CPU_TRITON" >"$VENV/constraints.txt"
    fi
    step "5/5 this package, editable, with its test tools" \
        pip install --no-build-isolation -e '.[dev]' "$torch" ${limits[@]+"${limits[@]}"}
    write_stamp "$torch" "$build"
    report "$build"
}

main
