"""Whether the classes of a fine-tuned checkpoint are as many as a run has."""

from collections.abc import Mapping

from torch import Tensor

from d2v_plugin.errors import UserError


def check_head_size(weights: Mapping[str, Tensor], head: str, layer: str, classes: int, field: str) -> None:
    """Compare; a checkpoint without that head is left to whoever loads it.

    Args:
        weights: of the checkpoint, by name.
        head: what it is called in messages.
        layer: name of the layer with an output a class.
        classes: of this run.
        field: the setting that says so.
    Raises:
        UserError: the numbers differ.
    """
    there = weights.get(f"{layer}.weight")
    if there is not None and len(there) != classes:
        raise UserError(
            f"the checkpoint's {head} has {len(there)} classes and {field}={classes}; take a checkpoint of this "
            "task, or start from model.model_path"
        )
