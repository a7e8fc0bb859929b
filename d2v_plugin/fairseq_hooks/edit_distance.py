"""Word and letter errors during validation, without a package that has to be compiled.

fairseq's ``ctc`` criterion imports ``editdistance``, which has no wheel for Python 3.13. RapidFuzz has wheels
everywhere, comes with jiwer, and computes the same number, so it answers under that name where the package is missing.
"""

import importlib.util
import sys
from collections.abc import Hashable, Sequence
from types import ModuleType


def distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, each counting one."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(first, second)


def install() -> None:
    """Provide ``editdistance.eval`` where the package is not installed."""
    if "editdistance" in sys.modules or importlib.util.find_spec("editdistance") is not None:
        return
    module = ModuleType("editdistance", "d2v_plugin's stand-in, see d2v_plugin/fairseq_hooks/edit_distance.py")
    module.eval = distance
    sys.modules["editdistance"] = module
