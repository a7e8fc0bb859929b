"""Smaller learning rates for lower layers, and no weight decay for vectors (arXiv:2003.10555; BEiT, arXiv:2106.08254).

Parameters say what they want in ``optim_overrides``, which ``d2v_adamw`` reads, and fairseq's ``composite`` with
``dynamic_groups: true``, rates only. Both rules below are those of fairseq's ``mae_image_classification``: whoever
compares with its numbers needs the same rates, also where one would draw the line elsewhere.
"""

from collections.abc import Iterable, Sequence

from torch import nn

BELOW_BLOCKS = ("cls_token", "pos_embed")


def spare_vectors(module: nn.Module | None) -> None:
    """Exempt 1-D parameters and biases of ``module`` from weight decay; the others are left as they are."""
    if module is None:
        return
    for name, parameter in module.named_parameters():
        if _is_vector(name, parameter):
            parameter.optim_overrides = {"optimizer": {"weight_decay_scale": 0}}


def forget_groups(model: nn.Module) -> None:
    """Take away the names of pre-training's optimiser groups, which fine-tuning's optimiser does not have."""
    for parameter in model.parameters():
        vars(parameter).pop("param_group", None)


def decay_blocks(model: nn.Module, blocks: Sequence[nn.Module], decay: float, keep_exemption: bool = True) -> None:
    """The rule for data2vec 2.0: of N blocks, counted from 0 at the bottom, block n learns at ``decay ** (N - n)``.

    What lies below the blocks (patches, CLS) and the last norm learn at the full rate: only blocks are scaled.

    Args:
        model: all of whose 1-D parameters and biases are exempt from weight decay.
        blocks: prenet and shared blocks, from below.
        decay: 0 or 1 for one rate.
        keep_exemption: False makes the vectors inside scaled blocks decay, as ``no_decay_blocks: false`` does.
    """
    for name, parameter in model.named_parameters():
        parameter.optim_overrides = {"optimizer": {"weight_decay_scale": 0} if _is_vector(name, parameter) else {}}
    if decay <= 0:
        return
    for below, block in enumerate(blocks):
        scale = decay ** (len(blocks) - below)
        if scale == 1:
            continue
        for parameter in block.parameters():
            kept = parameter.optim_overrides["optimizer"] if keep_exemption else {}
            parameter.optim_overrides = {"optimizer": {**kept, "lr_scale": scale}}


def decay_vit(parameters: Iterable[tuple[str, nn.Parameter]], depth: int, decay: float) -> None:
    """The rule for ViTs such as MAE: what lies below the first block learns slowest, what lies above the last fully.

    Args:
        parameters: ``named_parameters()``, blocks called ``blocks.0`` and so on.
        depth: N, the number of blocks. Block n of 0..N-1 learns at ``decay ** (N - n)``, CLS, positions and patches at
            ``decay ** (N + 1)``.
        decay: 0 for one rate.
    """
    for name, parameter in parameters:
        wanted = {"weight_decay_scale": 0} if _is_vector(name, parameter) else {}
        if decay > 0:
            wanted["lr_scale"] = decay ** (depth + 1 - _layer(name, depth))
        parameter.optim_overrides = {"optimizer": wanted}


def _layer(name: str, depth: int) -> int:
    """0 below the blocks, then 1 to N, N + 1 above; relative positions, which all blocks share, count with the last."""
    if name in BELOW_BLOCKS or name.startswith("patch_embed"):
        return 0
    if name.startswith("rel_pos_bias"):
        return depth
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


def _is_vector(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() == 1 or name.endswith(".bias")
