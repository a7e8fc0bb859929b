"""What every test shares: seeds, helpers to import, and leaving out what needs a GPU where there is none."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # makes `import upstream` work from every folder


def pytest_collection_modifyitems(config, items):
    """The machine chooses tests that need a GPU, so that none is ever reported as skipped."""
    if not torch.cuda.is_available():
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)
