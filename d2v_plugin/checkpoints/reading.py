"""Read torch files with torch's restricted unpickler and say in one line what is wrong with a bad one."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from d2v_plugin.checkpoints.allowed import ALLOW_VARIABLE, is_allowed, names_from_environment, number_types, resolve
from d2v_plugin.errors import UserError

# What torch's readers raise on damaged bytes; anything else is a fault of ours and keeps its traceback.
DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, AttributeError, ImportError)
ZIP_MAGIC = b"PK\x03\x04"
# What torch's unpickler says about a class it does not know; files from before torch 1.6 cannot be asked beforehand.
REFUSED = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")
# More classes than this in one old-format file is no checkpoint.
MAX_CLASSES = 64


class RefusedClassError(UserError):
    """The file names a class that is not on the allow-list."""


def read_checkpoint(
    path: str | os.PathLike,
    *,
    keys: Iterable[str] = (),
    allow: Iterable[str] = (),
    verify: bool = True,
    mmap: bool = True,
) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Args:
        path: file written by ``torch.save``, a fairseq checkpoint for instance.
        keys: entries that have to be there, ("model",) for instance.
        allow: full names of further classes the file may hold, "package.module.Class"; the environment variable
            ``D2V_ALLOW_CLASSES`` adds to them.
        verify: compare every tensor with its check sum first. torch does not, and loads damaged weights silently.
            Reads the file once, about a second a gigabyte from a warm disk.
        mmap: map tensors from the file rather than copy them, where its format allows. Leave it off if the tensors
            outlive a file that somebody may overwrite in place.
    Returns:
        The dictionary, tensors on the CPU.
    Raises:
        UserError: missing, truncated, damaged or no checkpoint, with what to do; ``RefusedClassError`` when it names a
            class that is not allowed.
    """
    path = Path(path)
    is_zip = _check_file(path)
    if is_zip and verify:
        _check_sums(path)
    extra = frozenset(allow) | names_from_environment()
    with path.open("rb") as file:
        # torch maps a file only by its name.
        source = os.fspath(path) if is_zip and mmap else file
        try:
            state = load_plain(source, extra, is_zip=is_zip, mmap=is_zip and mmap)
        except RefusedClassError as error:
            raise RefusedClassError(f"{path}: {error}") from None
        except DAMAGED as error:
            raise UserError(
                f"{path} cannot be read ({_first_line(error)}); copy it again, or use an earlier checkpoint"
            ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__} rather than a dictionary; is it a checkpoint?")
    missing = [key for key in keys if key not in state]
    if missing:
        found = ", ".join(sorted(map(str, state))[:8])
        raise UserError(f"{path} has no {', '.join(missing)} (found: {found}); is it a fairseq checkpoint?")
    return state


def load_plain(
    source: str | BinaryIO, extra: frozenset[str] = frozenset(), *, is_zip: bool = True, mmap: bool = False
) -> Any:
    """``torch.load(weights_only=True)`` that also knows the classes of ``allowed.py`` and ``extra``.

    Args:
        source: file name, or a seekable binary stream.
        extra: full names of further classes.
        is_zip: whether it is torch's format since 1.6; that one is asked for its classes before anything is built.
        mmap: see ``read_checkpoint``; ``source`` must then be a name.
    Raises:
        RefusedClassError: a class is not allowed; whatever ``torch.load`` raises on damaged data.
    """
    if is_zip:
        start = 0 if isinstance(source, str) else source.tell()
        names = torch.serialization.get_unsafe_globals_in_checkpoint(source)
        if not isinstance(source, str):
            source.seek(start)
        with torch.serialization.safe_globals(_resolve_allowed(names, extra)):
            try:
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
            except pickle.UnpicklingError as error:
                # A name put together while unpickling is not in the list above; torch meets it here.
                refused = _refused_name(error)
                if refused is None:
                    raise
                raise _refusal(refused) from None

    known: list[str] = []
    for _ in range(MAX_CLASSES):
        with torch.serialization.safe_globals(_resolve_allowed(known, extra)):
            try:
                return torch.load(source, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                refused = _refused_name(error)
                if refused is None or refused in known:
                    raise
                known.append(refused)
                source.seek(0)
    raise RefusedClassError(f"more than {MAX_CLASSES} classes in one file; it is no checkpoint")


def _refused_name(error: pickle.UnpicklingError) -> str | None:
    found = REFUSED.search(str(error))
    if found is None:
        return None
    # torch leaves "builtins." out of its message.
    return found[1] if "." in found[1] else f"builtins.{found[1]}"


def _resolve_allowed(names: Iterable[str], extra: frozenset[str]) -> list[tuple[object, str]]:
    """(object, name in the file) pairs for ``torch.serialization.safe_globals``."""
    pairs = []
    for name in sorted(names):
        if not is_allowed(name, extra):
            raise _refusal(name)
        try:
            pairs.append((resolve(name), name))
        except ImportError as error:
            package = name.split(".")[0]
            raise RefusedClassError(
                f"it holds a {name}, which cannot be imported here ({error}); install {package}, or save the file "
                "again without it"
            ) from error
        if name == "numpy.dtype":
            # A number type is made by numpy.dtype and is of a class that the file does not name.
            pairs += [(kind, f"numpy.dtypes.{kind.__name__}") for kind in number_types()]
    return pairs


def _refusal(name: str) -> RefusedClassError:
    return RefusedClassError(
        f"it names {name}, which could run code while it is read, so it was not loaded; "
        f"if you trust its source, allow the class: {ALLOW_VARIABLE}={name}"
    )


def _check_file(path: Path) -> bool:
    """Tell the usual mishaps apart before torch sees the file; True if it is in torch's zip format."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a checkpoint in it, checkpoint_best.pt or checkpoint_last.pt")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}; check the path{_neighbours(path)}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be opened ({error.strerror}); check its permissions") from error
    if not head:
        raise UserError(f"{path} is empty; its writing was interrupted, so use an earlier checkpoint")
    if head.startswith(ZIP_MAGIC):
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is truncated; copy or download it again, or use an earlier checkpoint")
        return True
    if head[8:9] == b"{":
        raise UserError(f"{path} is a safetensors file, not a torch checkpoint; pass the .pt file it came from")
    # Files from before torch 1.6 begin with a pickle of protocol 2 or later.
    if not head.startswith(b"\x80"):
        raise UserError(f"{path} is not a checkpoint; a download page saved under this name begins like this, too")
    return False


def _check_sums(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged ({_first_line(error)}); copy it again, or use an earlier one") from error
    if damaged is not None:
        raise UserError(f"{path} is damaged (check sum of {damaged}); copy it again, or use an earlier checkpoint")


def _neighbours(path: Path) -> str:
    """The checkpoints that are in the folder, to put into a message."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    found = sorted(p.name for p in path.parent.glob("*.pt"))
    return f" (in this folder: {', '.join(found[:5])})" if found else ""


def _first_line(error: BaseException) -> str:
    # torch puts advice first and the cause after this mark.
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return text.splitlines()[0][:160] if text else type(error).__name__
