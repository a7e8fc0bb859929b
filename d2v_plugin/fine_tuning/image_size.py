"""Images of another size than in pre-training: positions are stretched to the new grid of patches."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# fixed tables of mae, whose decoder is loaded before it is taken away, and of data2vec 2.0
POSITIONS = ("pos_embed", "decoder_pos_embed", "modality_encoders.IMAGE.fixed_positional_encoder.positions")
RELATIVE = "relative_position_bias_table"
RELATIVE_INDEX = "relative_position_index"  # which row belongs to which pair of patches
RELATIVE_OF_CLS = 3  # from CLS, to CLS, and its own


def fit_positions(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Make position tables in ``weights`` as large as those of ``model``, which was built for images of another size.

    Tables of positions, one row a patch, are interpolated bicubically as in MAE's and DeiT's fine-tuning; those of
    biases by relative position, (2 S - 1)^2 rows for a grid of side S and three more for CLS, likewise.
    """
    own = {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}
    for name, table in list(weights.items()):
        if name not in own or not torch.is_tensor(table) or table.shape == own[name].shape:
            continue
        if name in POSITIONS:
            weights[name] = stretched(table[0], own[name].shape[1]).unsqueeze(0)
        elif name.endswith(RELATIVE):
            weights[name] = stretched(table, len(own[name]), RELATIVE_OF_CLS, last=True)
        elif name.endswith(RELATIVE_INDEX):
            weights[name] = own[name]


def stretched(table: Tensor, rows: int, extra: int | None = None, last: bool = False) -> Tensor:
    """A square grid, row by row, at another size.

    Args:
        table: (side * side + extra, C).
        rows: new_side * new_side + extra.
        extra: rows that belong to no place; by default what is over a square number.
        last: they come after the grid, not before.
    Returns:
        (rows, C) of the same dtype.
    """
    if extra is None:
        extra = len(table) - math.isqrt(len(table)) ** 2
    old, new = math.isqrt(len(table) - extra), math.isqrt(rows - extra)
    grid, kept = (table[: len(table) - extra], table[len(table) - extra :]) if last else (table[extra:], table[:extra])
    square = grid.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    grid = square.permute(0, 2, 3, 1).reshape(new * new, -1).to(table.dtype)
    return torch.cat([grid, kept] if last else [kept, grid])
