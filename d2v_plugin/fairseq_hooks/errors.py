"""A mistake of the user's ends ``fairseq-hydra-train`` with one line.

Hydra prints a shortened traceback of whatever its task raises. With ``HYDRA_FULL_ERROR=1`` it passes the exception
on, and Python's own hook decides: ``UserError`` is one line, everything else is the whole traceback, which is what a
report needs. Whoever sets ``HYDRA_FULL_ERROR=0`` keeps Hydra's way.
"""

import os
import sys
from types import TracebackType

from d2v_plugin.errors import UserError


def install() -> None:
    """Put our hook before the one that is there."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    previous = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, UserError):
            print(f"d2v: error: {error}", file=sys.stderr)
        else:
            previous(kind, error, trace)

    sys.excepthook = report
