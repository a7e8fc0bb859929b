"""``scripts/setup_env.sh`` on machines that lack something, with a stand-in for pip: nothing is installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = "bash cat cp cut dirname env mkdir mv rm sed sha256sum tail uname chmod".split()
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

FAKE_PYTHON = f"""#!{shutil.which("bash")}
# Stands in for python: makes a pretended environment, notes what pip is asked for, leaves the rest to the real one.
case "$*" in
    "-m venv"*) mkdir -p "$4/bin"; cp "$FAKE/python" "$4/bin/python"; cp "$FAKE/d2v" "$4/bin/d2v"; exit ;;
    "-m pip"*)
        shift 4
        echo "$@" >>"$FAKE/pip.log"
        echo "pip says: $1"
        [[ "$*" != *"$(cat "$FAKE/fails")"* ]]
        exit ;;
    "- "*) exit "$(cat "$FAKE/unreachable")" ;;
    *ensurepip*) exit "$(cat "$FAKE/no_venv")" ;;
    *get_paths*) cat "$FAKE/include"; exit ;;
esac
exec {sys.executable} "$@"
"""


class Machine:
    """A copy of the project and a PATH that holds only what the test puts there."""

    def __init__(self, folder: Path):
        self.project, self.bin, self.fake = folder / "project", folder / "bin", folder / "fake"
        for made in (self.project / "scripts", self.bin, self.fake):
            made.mkdir(parents=True)
        for name in ("setup.py", "pyproject.toml", "scripts/setup_env.sh"):
            shutil.copy(ROOT / name, self.project / name)
        for tool in TOOLS:
            # Scripts rather than links: nothing written here can reach this computer's own tools.
            self.add(tool, f'#!/bin/sh\nexec {shutil.which(tool)} "$@"\n')
        for tool in ("git", "gcc", "g++"):
            self.add(tool)
        self.write("python", FAKE_PYTHON)
        self.write("d2v", "#!/bin/sh\necho versions\n")
        (self.fake / "Python.h").touch()
        self.settings(fails="nothing fails", unreachable="1", no_venv="0", include=str(self.fake))
        (self.bin / "python3").symlink_to(self.fake / "python")

    def write(self, name: str, text: str) -> None:
        (self.fake / name).write_text(text)
        (self.fake / name).chmod(0o755)

    def add(self, tool: str, text: str = "#!/bin/sh\nexit 0\n") -> None:
        (self.bin / tool).write_text(text)
        (self.bin / tool).chmod(0o755)

    def settings(self, **values: str) -> None:
        for name, value in values.items():
            (self.fake / name).write_text(value)

    def run(self, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["scripts/setup_env.sh"],
            cwd=self.project,
            env={"PATH": str(self.bin), "FAKE": str(self.fake), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def pip_calls(self) -> list[str]:
        """What pip was asked for since the last look."""
        log = self.fake / "pip.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("d2v setup: error: ")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("tool", ["git", "gcc"])
def test_missing_tool_is_named_with_its_command(machine, tool):
    (machine.bin / tool).unlink()
    refused(machine.run(), f"{tool} is missing", f"sudo apt-get install {tool}")
    assert machine.pip_calls() == []


def test_compiler_for_cxx_is_needed_where_fairseq_is_compiled(machine):
    (machine.bin / "g++").unlink()
    machine.add("uname", "#!/bin/sh\necho aarch64\n")
    refused(machine.run(), "g++ is missing", "sudo apt-get install g++")


def test_missing_headers_are_named_where_fairseq_is_compiled(machine):
    machine.settings(include=str(machine.fake / "nowhere"))
    machine.add("uname", "#!/bin/sh\necho aarch64\n")
    refused(machine.run(), "headers are missing", f"sudo apt-get install python{VERSION}-dev")


def test_missing_venv_module_is_named(machine):
    machine.settings(no_venv="1")
    refused(machine.run(), "venv module is missing", f"sudo apt-get install python{VERSION}-venv")


def test_no_python_at_all(machine):
    (machine.bin / "python3").unlink()
    refused(machine.run(), "no Python 3.11", "sudo apt-get install python3 python3-venv python3-dev", "PYTHON=")


def test_newest_python_that_runs_is_taken(machine):
    """A pyenv shim is there for every version and fails for those that are not switched on."""
    machine.add("python3.13", "#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n")
    (machine.bin / "python3.12").symlink_to(machine.fake / "python")
    assert ".venv with python3.12" in machine.run(DRY_RUN="1").stdout


def test_python_asked_for_is_taken_or_refused(machine):
    (machine.bin / "mine").symlink_to(machine.fake / "python")
    assert ".venv with mine" in machine.run(DRY_RUN="1", PYTHON="mine").stdout
    machine.add("old", "#!/bin/sh\nexit 1\n")
    refused(machine.run(PYTHON="old"), "PYTHON=old does not run or is not Python 3.11")


def test_dry_run_changes_nothing(machine):
    done = machine.run(DRY_RUN="1")
    assert done.returncode == 0
    assert not (machine.project / ".venv").exists()
    assert machine.pip_calls() == []


def test_first_run_installs_in_order_and_the_second_does_nothing(machine):
    done = machine.run()
    assert done.returncode == 0, done.stderr
    torch, tools, fairseq, package = machine.pip_calls()
    assert torch == "install torch==2.13.0"
    assert tools.startswith("install --upgrade pip setuptools wheel cython numpy")
    assert fairseq.startswith("install --no-build-isolation fairseq-fixed==0.12.3.1")
    assert package.startswith("install --no-build-isolation -e .[dev]")
    assert package.endswith(" -c .venv/constraints.txt")
    assert (machine.project / ".venv" / "constraints.txt").read_text() == "triton!=3.8.*\n"
    assert "versions" in done.stdout

    again = machine.run()
    assert again.stdout == "d2v setup: .venv is up to date\n"
    assert machine.pip_calls() == []


@pytest.mark.parametrize("change", ["requirements", "torch", "moved"])
def test_what_makes_it_run_again(machine, change):
    machine.run()
    machine.pip_calls()
    more = {}
    if change == "requirements":
        with (machine.project / "setup.py").open("a") as file:
            file.write("# changed\n")
    elif change == "torch":
        more = {"TORCH": "torch==2.9.1"}
    else:
        # A virtual environment holds the folder's name in its scripts.
        machine.project = machine.project.rename(machine.project.with_name("elsewhere"))
    done = machine.run(**more)
    assert ("1/5 .venv with" in done.stdout) == (change == "moved")
    assert machine.pip_calls()[0] == ("install torch==2.9.1" if change == "torch" else "install torch==2.13.0")
    # The chosen torch stays when TORCH is not repeated.
    assert "up to date" in machine.run().stdout


def test_interrupted_set_up_is_not_taken_for_complete(machine):
    machine.settings(fails="fairseq-fixed")
    done = machine.run()
    assert done.returncode == 2
    assert "pip says: install" in done.stderr
    assert "error: this step failed: 4/5 fairseq-fixed==0.12.3.1" in done.stderr.splitlines()[-1]
    assert "setup.log" in done.stderr.splitlines()[-1]
    machine.settings(fails="nothing fails")
    machine.pip_calls()
    assert machine.run().returncode == 0
    assert len(machine.pip_calls()) == 4


def test_cpu_build_comes_from_its_index_where_that_answers(machine):
    machine.settings(unreachable="0")
    machine.run(TORCH_INDEX="https://index.example/cpu")
    assert machine.pip_calls()[0] == "install torch==2.13.0 --index-url https://index.example/cpu"


def test_empty_index_means_the_default_one(machine):
    machine.settings(unreachable="0")
    machine.run(TORCH_INDEX="")
    assert machine.pip_calls()[0] == "install torch==2.13.0"


def test_gpu_takes_the_cuda_build_and_replaces_a_cpu_build(machine):
    machine.settings(unreachable="0")
    machine.run(TORCH_INDEX="https://index.example/cpu")
    machine.pip_calls()
    machine.add("nvidia-smi")
    machine.run(TORCH_INDEX="https://index.example/cpu")
    calls = machine.pip_calls()
    assert calls[:2] == ["uninstall -y torch", "install torch==2.13.0"]
    # The CUDA build names its own Triton.
    assert "constraints" not in calls[-1]
    assert "up to date" in machine.run().stdout
    # nvidia-smi without a driver is no GPU, and the CUDA build serves without one, too.
    machine.add("nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert "up to date" in machine.run().stdout


@pytest.mark.parametrize("target", ["help", "setup", "test", "demo", "demo-full", "lint", "clean"])
def test_make_knows_every_target(target):
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_make_passes_recordings_on():
    done = subprocess.run(
        ["make", "-n", "demo", "DATA=my wavs"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    assert 'examples/demo/run.py "speech" --data "my wavs"' in done.stdout
    done = subprocess.run(
        ["make", "-n", "demo", "MODALITY=text"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    assert 'examples/demo/run.py "text"' in done.stdout


def test_ci_runs_what_the_readme_says():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "exec make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / "README.md").read_text()
