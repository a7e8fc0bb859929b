"""Imports fairseq's own ``examples/data2vec`` as the oracle of the parity tests.

It does not import on a current stack, so while it does: dataclasses get a hash (Python 3.11 refuses
mutable defaults), registration is switched off (our models carry the same names), and its models
package is given a name of its own.
"""

import contextlib
import dataclasses
import importlib.util
import sys
from pathlib import Path
from unittest import mock

import fairseq
import fairseq.models

SOURCE = Path(fairseq.__file__).parent / "examples" / "data2vec" / "models"


def load(name):
    """The module ``examples/data2vec/models/<name>.py``, imported once under ``upstream_data2vec.<name>``."""
    qualified = f"upstream_data2vec.{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, SOURCE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        with _current_stack():
            spec.loader.exec_module(module)
    return sys.modules[qualified]


@contextlib.contextmanager
def _current_stack():
    plain = dataclasses.dataclass

    def hashable(cls=None, **kwargs):
        kwargs.setdefault("unsafe_hash", True)
        return plain(cls, **kwargs) if cls is not None else lambda c: plain(c, **kwargs)

    def unregistered(*_, **__):
        return lambda cls: cls

    with mock.patch.object(dataclasses, "dataclass", hashable), mock.patch.object(
        fairseq.models, "register_model", unregistered
    ):
        yield
