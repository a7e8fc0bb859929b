"""The kernels' device tests, in a child process under Triton's interpreter: small shapes, no GPU needed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from device_files import DEVICE_FILES

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", DEVICE_FILES)
def test_under_the_interpreter(name, tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", str(HERE / name)]
    # one thread: the tensors are tiny
    environment = dict(os.environ, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    result = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) > 0
