"""Small images, folders of them and tar shards, made where a test needs them."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed=0, width=20, height=16):
    """RGB noise, another for every seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(seed=0, width=20, height=16):
    """The same as the bytes of a PNG."""
    buffer = io.BytesIO()
    picture(seed, width, height).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(folder: Path, names: list[str], width=20, height=16) -> Path:
    """A PNG of noise for every name; those that end in .txt are text."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"text" if name.endswith(".txt") else png(seed, width, height))
    return folder


def write_tar(path: Path, members: dict[str, bytes], **options) -> Path:
    """A tar of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, **{"mode": "w", **options}) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
