"""Kernel tests run on the GPU where there is one, and under Triton's interpreter where there is none.

Triton decides for the interpreter once, when it is imported, so the interpreter needs a process of its own:
``test_interpreter.py`` starts it and runs DEVICE_FILES there. Elsewhere without a GPU those files are not collected.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside this file, whatever pytest's import mode

from d2v_kernels.dispatch import triton_available  # noqa: E402
from device_files import DEVICE_FILES  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

collect_ignore = []
if not triton_available():
    # no wheel for this platform: the eager twins are all there is
    collect_ignore += [*DEVICE_FILES, "test_interpreter.py", "test_aot.py"]
elif INTERPRETED:
    # these need Triton's compiler, which the interpreter replaces
    collect_ignore += ["test_interpreter.py", "test_aot.py"]
elif not torch.cuda.is_available():
    collect_ignore += DEVICE_FILES


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(20)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch) -> None:
    """torch.empty filled with NaN: an element that no program wrote cannot pass for a number."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        x = empty(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", poisoned)


def pytest_terminal_summary(terminalreporter) -> None:
    """What the kernels take, where test_aot.py compiled them."""
    aot = sys.modules.get("aot")
    lines = aot.summary() if aot else []
    if lines:
        terminalreporter.section("kernels compiled ahead of time")
        for line in lines:
            terminalreporter.write_line(line)
