"""Imports point downwards only: what may run without fairseq does not import it, and kernels know torch and Triton."""

import ast
import sys

import pytest
from tiny_training import ROOT

# folder -> packages beyond Python's own that its files may import
ALLOWED = {
    "kernels": {"torch", "triton"},
    "d2v_plugin/method": {"torch", "d2v_kernels", "d2v_plugin"},
    "d2v_plugin/modules": {"torch", "d2v_kernels", "d2v_plugin"},
    "d2v_plugin/modalities": {"torch", "omegaconf", "d2v_plugin"},
    "d2v_plugin/checkpoints": {"torch", "numpy", "d2v_plugin"},
}
BELOW = tuple(f"d2v_plugin.{name}" for name in ("errors", "randomness", "ranges", "method", "modules", "checkpoints"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_stay_within_bounds(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            package = name.split(".")[0]
            assert package in ALLOWED[folder] | sys.stdlib_module_names, f"{path}: {name}"
            own = folder.replace("/", ".")
            assert package != "d2v_plugin" or name.startswith((*BELOW, own)), f"{path}: {name}"
