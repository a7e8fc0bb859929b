"""Imports fairseq's own ``examples/data2vec`` as the oracle of the parity tests.

It does not import on a current stack, so while it does: dataclasses get a hash (Python 3.11 refuses
mutable defaults), registration is switched off (our models carry the same names), timm has stand-ins,
NumPy its old ``np.float`` and ``np.int``, and packages whose ``__init__`` asks for torchvision are entered without it.
fairseq's own ``TransformerConfig``, a default of 1.0 text, gets a hash like the others.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from unittest import mock

import fairseq
import fairseq.models
import numpy as np
import timm_stand_in
import torch
from fairseq.models.transformer import TransformerConfig

ROOT = Path(fairseq.__file__).parent / "examples"
SOURCE = ROOT / "data2vec" / "models"
PACKAGES = ("", ".data2vec", ".data2vec.data", ".data2vec.models", ".data2vec.models.modalities")


def load(name):
    """The module ``examples/data2vec/models/<name>.py``, imported once under ``upstream_data2vec.<name>``."""
    qualified = f"upstream_data2vec.{name}"
    if qualified not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified, SOURCE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified] = module
        with current_stack():
            spec.loader.exec_module(module)
    return sys.modules[qualified]


def load_v2(name):
    """The module ``examples.data2vec.<name>``, under that name: 2.0's modules import one another by it."""
    for package in PACKAGES:
        qualified = f"examples{package}"
        if qualified not in sys.modules:
            sys.modules[qualified] = types.ModuleType(qualified)
        sys.modules[qualified].__path__ = [str(ROOT.joinpath(*package.split(".")[1:]))]
    with current_stack():
        return importlib.import_module(f"examples.data2vec.{name}")


def save(path, cfg, model):
    """A checkpoint of ``model`` as upstream's trainer lays it out; gives ``path``."""
    history = {
        "num_updates": 7,
        "criterion_name": "ModelCriterion",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
    }
    state = {
        "cfg": cfg,
        "args": None,
        "model": model.state_dict(),
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 2}, "val_loss": None},
        "task_state": {},
    }
    torch.save(state, path)
    return path


@contextlib.contextmanager
def current_stack():
    """What upstream's code needs in order to import and to build its models."""
    plain = dataclasses.dataclass

    def hashable(cls=None, **kwargs):
        kwargs.setdefault("unsafe_hash", True)
        return plain(cls, **kwargs) if cls is not None else lambda c: plain(c, **kwargs)

    def unregistered(*_, **__):
        return lambda cls: cls

    with (
        mock.patch.object(dataclasses, "dataclass", hashable),
        mock.patch.object(TransformerConfig, "__hash__", object.__hash__),
        mock.patch.object(fairseq.models, "register_model", unregistered),
        mock.patch.dict(sys.modules, timm_stand_in.modules()),
        mock.patch.object(np, "float", float, create=True),
        mock.patch.object(np, "int", int, create=True),
    ):
        before = set(sys.modules)
        yield
        imported = {name: module for name, module in sys.modules.items() if name not in before}
    # patch.dict forgets what was imported meanwhile
    sys.modules.update(imported)
