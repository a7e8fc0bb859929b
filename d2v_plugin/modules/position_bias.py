"""Biases on attention logits: ALiBi, which falls with the distance of two positions, and BEiT's, learned by offset.

ALiBi is computed from the positions:

    bias[b, h, i, j] = -scale[h] * slope[h] * distance(position[b, i], position[b, j])

Positions are those of the whole sequence, so tokens that remain after masked ones were dropped keep their distances.
Sources: Press et al., arXiv:2108.12409 (slopes); symmetric, as data2vec 2.0 for speech, arXiv:2212.07525. Bao et al.,
arXiv:2106.08254 (BEiT).
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F

from d2v_plugin.errors import UserError

DISTANCES = ("manhattan", "euclidean")


def alibi_slopes(heads):
    """One slope per head: a geometric sequence; for a number that is no power of 2, filled up from the next one's.

    Returns:
        (H,) fp32.
    """
    power = 2 ** math.floor(math.log2(heads))
    start = 2 ** (-8 / power)
    slopes = [start ** (i + 1) for i in range(power)]
    between = 2 ** (-4 / power)
    slopes += [between ** (i + 1) for i in range(0, 2 * (heads - power), 2)]
    return torch.tensor(slopes)


def grid_coordinates(T, dims, device=None):
    """Where T positions lie on a line (``dims`` 1) or, row by row, on a square (``dims`` 2): (T, dims) fp32.

    Raises:
        UserError: T positions that fill no square, or another number of dimensions.
    """
    if dims == 1:
        return torch.arange(T, dtype=torch.float32, device=device).unsqueeze(1)
    if dims != 2:
        raise UserError(f"alibi_dims must be 1 or 2, got {dims}")
    side = math.isqrt(T)
    if side * side != T:
        raise UserError(f"alibi_dims 2 needs a square of patches, got {T} of them; use square images or alibi_dims 1")
    line = torch.arange(side, dtype=torch.float32, device=device)
    return torch.cartesian_prod(line, line)


@dataclass
class PositionBias:
    """A bias on attention logits, held as positions; ``dense`` makes it for the rows it covers.

    Attributes:
        positions: (R, T) int64, indices into ``coordinates`` or ``table``; R rows of a batch, or 1 for all of them.
            -1 marks extra tokens, which nothing biases.
        coordinates: (P, dims) fp32.
        slopes: (H,) fp32.
        distance: ``manhattan`` or ``euclidean``.
        table: (H, P, P) learned bias in place of slopes and distances, or None.
        scale: fp32, (1, H or 1, 1, 1), or None for 1. Gradients flow to it and to ``table``.
    """

    positions: torch.Tensor
    coordinates: torch.Tensor | None = None
    slopes: torch.Tensor | None = None
    distance: str = "manhattan"
    table: torch.Tensor | None = None
    scale: torch.Tensor | None = None

    @property
    def rows(self):
        return self.positions.shape[0]

    def part(self, rows):
        """The bias of a slice of the rows."""
        return self if self.rows == 1 else replace(self, positions=self.positions[rows])

    def scaled(self, scale):
        """The same bias with another ``scale``."""
        return replace(self, scale=scale)

    def dense(self):
        """(R, H, T, T) fp32."""
        at = self.positions.clamp(min=0)
        if self.table is not None:
            # positions past the table share its last row and column
            at = at.clamp(max=self.table.shape[-1] - 1)
            bias = self.table[:, at[:, :, None], at[:, None, :]].transpose(0, 1)
        else:
            bias = -self.slopes[:, None, None] * self._distances(self.coordinates[at])[:, None]
        if self.scale is not None:
            bias = bias * self.scale
        extra = self.positions < 0
        return bias.masked_fill((extra[:, :, None] | extra[:, None, :])[:, None], 0.0)

    def _distances(self, points):
        """(R, T, dims) -> (R, T, T)."""
        apart = points[:, :, None] - points[:, None, :]
        if self.distance == "euclidean":
            return apart.square().sum(-1).sqrt()
        return apart.abs().sum(-1)


@dataclass
class DenseBias:
    """A bias that all rows share and that is there already: ``values`` (1, H, T, T)."""

    values: torch.Tensor
    rows = 1

    def part(self, rows):
        """The bias of a slice of the rows."""
        return self

    def dense(self):
        """(1, H, T, T)."""
        return self.values


def relative_position_index(side):
    """Which row of the table biases a pair of tokens, the class token first: (1 + side**2, 1 + side**2) int64.

    Row ``(dy + side - 1) * (2 * side - 1) + dx + side - 1`` is that of patches ``dy`` rows and ``dx`` columns apart;
    the last three are those of the class token to a patch, of a patch to it, and of it to itself.
    """
    line = torch.arange(side)
    places = torch.cartesian_prod(line, line)
    apart = places[:, None] - places[None] + side - 1
    offsets = (2 * side - 1) ** 2
    index = torch.empty(side**2 + 1, side**2 + 1, dtype=torch.long)
    index[1:, 1:] = apart[..., 0] * (2 * side - 1) + apart[..., 1]
    index[0], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


def add_relative_positions(module, side, heads):
    """Give ``module`` a learned bias of each offset between patches of a square image, with upstream's names."""
    index = relative_position_index(side)
    module.relative_position_bias_table = nn.Parameter(torch.zeros(int(index.max()) + 1, heads))
    module.register_buffer("relative_position_index", index)


def relative_bias(module):
    """``DenseBias`` of the class token and all patches, from what ``add_relative_positions`` gave."""
    values = F.embedding(module.relative_position_index, module.relative_position_bias_table)
    return DenseBias(values.permute(2, 0, 1).unsqueeze(0).contiguous())


class RelativePositionBias(nn.Module):
    """One such bias for several blocks: the module returns it."""

    def __init__(self, side, heads):
        super().__init__()
        add_relative_positions(self, side, heads)

    def forward(self):
        return relative_bias(self)
