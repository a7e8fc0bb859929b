"""A mistake of the user's ends ``fairseq-hydra-train`` with one line.

Hydra prints a shortened traceback of whatever its task raises. With ``HYDRA_FULL_ERROR=1`` it passes the exception
on, and Python's own hook decides: ``UserError`` and a configuration that OmegaConf refuses are one line, everything
else is the whole traceback, which is what a report needs. Whoever sets ``HYDRA_FULL_ERROR=0`` keeps Hydra's way.
"""

import os
import sys
from types import TracebackType

from omegaconf.errors import OmegaConfBaseException

from d2v_plugin.errors import UserError


def one_line(error: BaseException) -> str | None:
    """What to tell the user instead of a traceback, or None where the traceback is needed.

    fairseq replaces some exceptions by a plain ``Exception`` that says less; a ``UserError`` among those it replaced is
    what the user needs.
    """
    if isinstance(error, OmegaConfBaseException):
        return _configuration(error)
    replaced: BaseException | None = error
    while replaced is not None and not isinstance(replaced, UserError):
        replaced = (replaced.__cause__ or replaced.__context__) if type(error) is Exception else None
    return None if replaced is None else str(replaced)


def _configuration(error: OmegaConfBaseException) -> str:
    """OmegaConf's first line and the key, which it names in the second."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    key = error.full_key
    where = f"{key}: " if key and key not in first else ""
    return f"configuration: {where}{first}; correct the name or the value, or leave it out"


def install() -> None:
    """Put our hook before the one that is there."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    previous = sys.excepthook

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = one_line(error)
        if line is None:
            previous(kind, error, trace)
        else:
            print(f"d2v: error: {line}", file=sys.stderr)

    sys.excepthook = report
