"""Several processes can resume from one checkpoint.

Rank 0 reads the file and sends it to the others as a pickle in which tensors are replaced by fairseq's own
``_TensorPlaceholder``. The receivers call a bare ``torch.load``, which since torch 2.6 refuses that class, and every
multi-process resume ends there. Here the receiver's ``torch.load`` accepts what a checkpoint may hold and the
placeholder; the bytes come from rank 0 of the same job.
"""

import io
from typing import Any

import torch
from fairseq.distributed import utils as distributed_utils

from d2v_plugin.checkpoints import load_plain
from d2v_plugin.checkpoints.allowed import names_from_environment
from d2v_plugin.fairseq_hooks.module_view import ModuleView

PLACEHOLDER = "fairseq.distributed.utils._TensorPlaceholder"


def load_message(buffer: io.BytesIO, *args: Any, **kwargs: Any) -> Any:
    """``torch.load`` as ``_broadcast_object_slow`` calls it: on the received bytes."""
    # Tensor sizes and types travel in a message of their own; torch's reader knows those.
    return load_plain(buffer, names_from_environment() | {PLACEHOLDER})


def install() -> None:
    """Replace ``torch.load`` inside ``fairseq.distributed.utils``."""
    distributed_utils.torch = ModuleView(torch, load=load_message)
