"""``d2v env``: the versions and the hardware in play, to read after an install and to paste into a report."""

import argparse
import importlib.metadata
import importlib.util
import platform
from pathlib import Path

PACKAGES = ("torch", "triton", "fairseq-fixed", "hydra-core", "omegaconf", "numpy", "soundfile")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register ``d2v env``."""
    parser = subparsers.add_parser("env", help="print versions, the GPU and what to pass as common.user_dir")
    parser.set_defaults(run=run)


def package_version(name: str) -> str:
    """Installed version of distribution ``name``, or "not installed"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe_apex() -> str:
    """Whether NVIDIA apex is there; the PyPI package of that name is something else, without ``apex.optimizers``."""
    if importlib.util.find_spec("apex") is None:
        return "not installed (optional: FusedAdam)"
    if importlib.util.find_spec("apex.optimizers") is None:
        return "not NVIDIA's (the PyPI package of this name is unrelated)"
    return "NVIDIA apex"


def describe_gpu() -> str:
    """Names of the CUDA devices torch sees, or why there are none."""
    import torch

    if not torch.cuda.is_available():
        build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        return f"none ({build})"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor})" for p in names)


def run(args: argparse.Namespace) -> int:
    """Print one ``name value`` line each."""
    import d2v_plugin

    python = f"{platform.python_version()} on {platform.platform()}"
    lines = [("d2v-plugin", d2v_plugin.__version__), ("python", python)]
    lines += [(name, package_version(name)) for name in PACKAGES]
    lines += [("apex", describe_apex()), ("GPU", describe_gpu())]
    # fairseq takes a path here. The bare name d2v_plugin serves in the repository's root and, after an install that
    # is not editable, everywhere, because fairseq also looks beside itself.
    lines += [("user_dir", str(Path(d2v_plugin.__file__).parent))]
    for name, value in lines:
        print(f"{name:<14} {value}")
    return 0
