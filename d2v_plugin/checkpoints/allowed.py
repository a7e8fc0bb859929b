"""Which classes a checkpoint may name, and how they are resolved.

A pickle names functions and classes by text, and reading it calls them. torch's restricted reader
(``weights_only=True``) knows tensors and containers and refuses the rest; fairseq's files also hold the few classes
below, whose construction does nothing but store what it is given. They are listed by name and imported only when a
file asks for them, so reading a checkpoint needs fairseq only if fairseq's objects are inside.
"""

import importlib
import os

import numpy as np

ALLOWED_NAMES = frozenset(
    {
        "argparse.Namespace",
        # OmegaConf's containers hold an empty one.
        "collections.defaultdict",
        "builtins.dict",
        "builtins.frozenset",
        "builtins.int",
        "builtins.list",
        "builtins.str",
        "builtins.tuple",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "typing.Any",
        # NumPy renamed numpy.core to numpy._core in 2.0; files carry the name of their time.
        "numpy.core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy.dtype",
        "numpy.ndarray",
        # Configurations of files older than fairseq's plain dictionaries.
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.nodes.AnyNode",
        "omegaconf.nodes.BooleanNode",
        "omegaconf.nodes.EnumNode",
        "omegaconf.nodes.FloatNode",
        "omegaconf.nodes.IntegerNode",
        "omegaconf.nodes.StringNode",
        # Fine-tuned models carry their letters, files of 2020 their meters.
        "fairseq.data.dictionary.Dictionary",
        "d2v_plugin.checkpoints.modality.Modality",
        "fairseq.logging.meters.AverageMeter",
        "fairseq.logging.meters.StopwatchMeter",
        "fairseq.logging.meters.TimeMeter",
        "fairseq.meters.AverageMeter",
        "fairseq.meters.StopwatchMeter",
        "fairseq.meters.TimeMeter",
    }
)
ALLOW_VARIABLE = "D2V_ALLOW_CLASSES"


def names_from_environment() -> frozenset[str]:
    """Full names of further classes the user trusts, from ``D2V_ALLOW_CLASSES`` (commas between them)."""
    return frozenset(name.strip() for name in os.environ.get(ALLOW_VARIABLE, "").split(",") if name.strip())


def is_allowed(name: str, extra: frozenset[str]) -> bool:
    """Whether a checkpoint may name ``name`` ("package.module.Class"); ``extra`` are names the user added."""
    name = _usual(name)
    kinds = {f"numpy.dtypes.{kind.__name__}" for kind in number_types()}
    return name in ALLOWED_NAMES or name in extra or name in kinds


def number_types() -> list[type]:
    """NumPy's classes of fixed-size data types, ``numpy.dtypes.Float64DType`` and its like; never the object type."""
    kinds = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    return [kind for kind in kinds if kind is not np.dtypes.ObjectDType]


def resolve(name: str) -> object:
    """Import the object called ``name``.

    Raises:
        ImportError: its module, or the name in it, does not exist here.
    """
    module_name, _, attribute = _usual(name).rpartition(".")
    module = importlib.import_module(module_name)
    if not hasattr(module, attribute):
        raise ImportError(f"{module_name} has no {attribute}")
    return getattr(module, attribute)


def _usual(name: str) -> str:
    """The name under which it can be imported everywhere.

    3.13 writes ``pathlib._local`` into files for what is ``pathlib`` elsewhere, and upstream's enumeration of
    modalities goes by the folder it was trained from.
    """
    if name.endswith("data2vec.data.modality.Modality"):
        return "d2v_plugin.checkpoints.modality.Modality"
    return name.replace("pathlib._local.", "pathlib.", 1) if name.startswith("pathlib._local.") else name
