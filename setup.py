"""Packaging. ``kernels/`` installs as ``d2v_kernels``: a top-level ``kernels`` would shadow a PyPI package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "d2v_plugin" / "__init__.py").read_text()).group(1)
# Beam search with a language model; has no wheel for Python 3.13, where plain Python does it more slowly.
LM = ["flashlight-text; python_version < '3.13' and sys_platform == 'linux' and platform_machine == 'x86_64'"]

setup(
    name="d2v-plugin",
    version=VERSION,
    description="data2vec 1.0 and 2.0 for fairseq: self-supervised speech, images and text with fused Triton kernels",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["d2v_plugin", "d2v_plugin.*"]) + ["d2v_kernels"],
    package_dir={"d2v_kernels": "kernels"},
    install_requires=[
        "torch>=2.6",
        "triton; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "fairseq-fixed==0.12.3.1",
        "numpy",
        "soundfile",
        "soxr",
        "sentencepiece",
        "Pillow>=10.3",
        "kornia>=0.9",
        "jiwer",
        "rapidfuzz",
        "safetensors",
    ],
    extras_require={
        "dev": ["pytest", "pytest-xdist", "ruff", "matplotlib", "scipy", "scikit-learn", *LM],
        "lm": LM,
        "export": ["transformers", "onnx", "onnxruntime"],
        "cluster": ["submitit", "hydra-submitit-launcher"],
    },
    entry_points={"console_scripts": ["d2v=d2v_plugin.cli.main:main"]},
)
