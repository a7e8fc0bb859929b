"""Debian packages as a source of data: downloaded and unpacked below a folder of one's own, without root."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from d2v_plugin.errors import UserError


def fetch_packages(packages: Sequence[str], dest: Path, instead: str) -> Path:
    """Download with ``apt-get download`` (unless it is there already) and unpack with ``dpkg -x``.

    Args:
        dest: the archives go to ``dest/debs``, their files to ``dest/unpacked``; both may come from elsewhere.
        instead: what to do without the packages, for messages.
    Returns:
        The unpacked root.
    Raises:
        UserError: no apt-get or dpkg, or one of them failed.
    """
    store, unpacked = dest / "debs", dest / "unpacked"
    store.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if not list(store.glob(f"{package}_*.deb")):
            _download(package, store, instead)
        archive = sorted(store.glob(f"{package}_*.deb"))[-1]
        documents = unpacked / "usr/share/doc" / package
        if not documents.is_dir():
            _run(["dpkg", "-x", str(archive), str(unpacked)], store, store, instead)
        print(f"{package}: licence and authors in {documents / 'copyright'}")
    return unpacked


def _download(package: str, store: Path, instead: str) -> None:
    """Into a folder of its own first, so that an interrupted download is not taken for an archive."""
    part = store / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _run(["apt-get", "download", package], part, store, instead)
        found = sorted(part.glob(f"{package}_*.deb"))
        if not found:
            raise UserError(f"apt-get download {package} left no file; put the .deb into {store}, {instead}")
        found[-1].rename(store / found[-1].name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _run(command: list[str], folder: Path, store: Path, instead: str) -> None:
    """Run a Debian tool in ``folder``; its messages are shown only when it fails."""
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} (Debian, Ubuntu) is missing; copy the .deb files to {store}, {instead}")
    print("$", *command)
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        reasons = [line for line in result.stderr.splitlines() if line.startswith(("E:", "dpkg"))]
        reason = (reasons or result.stderr.splitlines() or ["no message"])[-1]
        raise UserError(
            f"`{' '.join(command)}` failed ({reason}); run `apt-get update` as root, check the network, "
            f"copy the .deb files to {store}, {instead}"
        )
