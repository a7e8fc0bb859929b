"""Checkpoints are read without running code from them, and a bad path is one line.

fairseq opens the file and calls ``torch.load``. Since torch 2.6 that refuses files holding fairseq's ``Dictionary``
(every fine-tuned model); before, it ran whatever the file said.
"""

from typing import Any, BinaryIO

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.fairseq_hooks.module_view import ModuleView


def load_open_file(file: BinaryIO, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """``torch.load`` as ``checkpoint_utils`` calls it: on a file it has just opened, tensors to the CPU.

    Not mapped: optimizer state keeps these tensors for the whole run, while tools may rewrite the file.
    """
    return read_checkpoint(file.name, keys=("model",), mmap=False)


def install() -> None:
    """Replace ``torch.load`` inside ``checkpoint_utils`` and check paths before they are opened."""
    original = checkpoint_utils.load_checkpoint_to_cpu

    def load_checkpoint_to_cpu(path: str, arg_overrides: dict | None = None, load_on_all_ranks: bool = False) -> dict:
        """fairseq's signature and result: the state with its configuration, tensors on the CPU."""
        if not PathManager.path_requires_pathmanager(path) and not PathManager.exists(path):
            # Says which file and what stands beside it.
            read_checkpoint(path)
        try:
            return original(path, arg_overrides, load_on_all_ranks)
        except KeyError as error:
            # fairseq completes the files of its earlier versions and so expects their entries.
            raise UserError(
                f"{path} was not written by fairseq: it has no {error.args[0]}; pass one of its checkpoints"
            ) from error

    checkpoint_utils.torch = ModuleView(torch, load=load_open_file)
    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu
