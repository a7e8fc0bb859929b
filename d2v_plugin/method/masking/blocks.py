"""Masks made of blocks, over time or over a grid of patches, drawn for the whole batch at once.

Follows the rules of fairseq's ``compute_block_mask_1d`` and ``compute_block_mask_2d`` (data2vec 2.0, arXiv:2212.07525,
section 3.2): centres are drawn with replacement, each covers a block that is clipped at the border, and positions are
then added or removed at random until every row has the same number. With ``inverse`` blocks are what is kept. Here a
grid need not be square, and rows may be shorter than the batch.

Time is a grid of height 1 whose blocks have height 1, so that one code serves both.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from d2v_plugin.errors import UserError
from d2v_plugin.method.masking.counts import exactly, smallest, some_of


def block_masked_count(grid, *, prob, inverse=False, lengths=None):
    """Masked positions in every row of an exact ``block_mask``: an int, known without drawing.

    Args:
        grid, prob, inverse, lengths: as in ``block_mask``. With ``lengths`` it is the share ``prob`` of the shortest
            row, at least 1, and leaves at least 1.
    Raises:
        UserError: ``prob`` outside 0..1, or so that nothing is masked, or nothing left.
    """
    if not 0 <= prob <= 1:
        raise UserError(f"mask_prob must lie between 0 and 1, got {prob}")
    cells = math.prod(grid) if lengths is None else int(torch.as_tensor(lengths).min())
    masked = cells - int(cells * (1 - prob)) if inverse else int(cells * prob)
    if lengths is not None:
        if cells < 2:
            raise UserError(f"a row of {cells} frames cannot be masked in part: raise min_sample_size")
        return min(max(masked, 1), cells - 1)
    if masked == 0:
        raise UserError(f"mask_prob {prob} masks none of {cells} positions: raise it")
    if masked == cells:
        raise UserError(f"mask_prob {prob} leaves nothing of {cells} positions: lower it")
    return masked


def block_mask(
    draws,
    grid,
    *,
    prob,
    length,
    adjust=0.0,
    inverse=False,
    exact=True,
    dropout=0.0,
    expand_adjacent=False,
    non_overlapping=False,
    lengths=None,
):
    """Draw a mask for every row of ``draws``; reads nothing back from the device unless ``expand_adjacent``.

    Args:
        draws: SampleDraws or GeneratorDraws.
        grid: ``(T,)`` or ``(H, W)``.
        prob: share of the positions that are masked.
        length: side of a block; its centre stands at ``length // 2``.
        adjust: added to the share that blocks cover when blocks are counted, to make up for overlaps.
        inverse: blocks are the kept positions, and cover ``1 - prob``.
        exact: the same number of masked positions in every row, ``block_masked_count``.
        dropout: draw more blocks by this share; the exact number then leaves holes in them.
        expand_adjacent: rows with too few positions grow at the edges of their blocks instead of anywhere. Only with
            ``exact``. Reads the device once per round of growth.
        non_overlapping: blocks are the cells of a coarse grid, drawn without replacement.
        lengths: valid positions of every row, integers on the host, for a 1-D grid and ``exact``; no others are masked.
            All rows get the number that suits the shortest, longer ones by fewer blocks. Other rows of the batch
            change a row by this number only.
    Returns:
        (rows, T or H * W) bool, True = masked.
    Raises:
        UserError: a share outside 0..1 or with nothing masked or nothing left, a block that the grid has no room for,
            or an adjustment that asks for fewer blocks than none, or for more than the grid has.
    """
    sides = (1, *grid) if len(grid) == 1 else tuple(grid)
    block = (1, length) if len(grid) == 1 else (length, length)
    if lengths is not None and (len(grid) != 1 or not exact):
        raise ValueError("rows with lengths of their own need a 1-D grid and an exact count")
    _check(sides[-len(grid) :], length, prob, 1 - prob if inverse else prob, adjust, dropout, non_overlapping)
    masked = block_masked_count(grid, prob=prob, inverse=inverse, lengths=lengths) if exact else None

    plan = _plan(sides, block, prob, masked, adjust, inverse, dropout, non_overlapping, lengths, draws.device)
    if not exact and plan.most == 0:
        raise UserError(f"mask_prob {prob} gives no block of {length} in {math.prod(sides)} positions: change it")
    mask = (_tiles if non_overlapping else _blocks)(draws, sides, block, plan)
    if plan.valid is not None:
        mask &= plan.valid
    if exact and expand_adjacent:
        mask = _grow(draws, mask, sides, plan)
    if inverse:
        mask = ~mask if plan.valid is None else ~mask & plan.valid
    if exact:
        mask = exactly(mask, masked, draws.uniform("block.exact", mask.shape[1]), plan.valid)
    return mask


def _check(sides, length, prob, share, adjust, dropout, non_overlapping):
    if not 1 <= length <= min(sides):
        raise UserError(f"mask_length must lie between 1 and the grid's side of {min(sides)} positions, got {length}")
    if dropout < 0:
        raise UserError(f"mask_dropout must not be negative, got {dropout}")
    if not 0 <= prob <= 1:
        raise UserError(f"mask_prob must lie between 0 and 1, got {prob}")
    if share + adjust < 0:
        raise UserError(f"mask_prob_adjust {adjust} takes more than the share of {share:g} that blocks cover: raise it")
    if non_overlapping and (share + adjust) * (1 + dropout) > 1:
        raise UserError(
            f"blocks that do not overlap would cover a share of ({share:g} + mask_prob_adjust {adjust}) * "
            f"(1 + mask_dropout {dropout}), which is more than all: lower one of them"
        )


@dataclass
class _Plan:
    """Numbers of a batch of masks: ints, or (rows, 1) on the device where rows have lengths of their own."""

    cells: int | torch.Tensor  # positions that centres are drawn from
    sites: int | torch.Tensor  # cells of the coarse grid of blocks
    drawn: int | torch.Tensor  # blocks
    most: int  # blocks of the row that has the most
    grown: int | torch.Tensor | None  # positions up to which ``expand_adjacent`` grows; None when not exact
    valid: torch.Tensor | None  # (rows, T) bool


def _plan(sides, block, prob, masked, adjust, inverse, dropout, non_overlapping, lengths, device):
    # In fp64 and upstream's order of operations, so that rounding down gives upstream's numbers.
    share = 1 - prob if inverse else prob
    widths = torch.as_tensor([sides[1]] if lengths is None else lengths, dtype=torch.double)
    cells = sides[0] * widths
    sites = math.ceil(sides[0] / block[0]) * torch.ceil(widths / block[1])
    grown = None
    if masked is not None:
        covered = cells - masked if inverse else torch.full_like(cells, masked)
        # A row that gets the share asked for keeps it unrounded, and so its usual number of blocks.
        share = torch.where((cells * share).long() == covered, share, covered / cells)
        grown = covered * (1 + dropout)
    if non_overlapping:
        drawn = torch.minimum(sites * (share + adjust) * (1 + dropout), sites)
    else:
        drawn = cells * ((share + adjust) / math.prod(block)) * (1 + dropout)
    drawn = drawn.clamp(min=0).long()

    def settled(numbers):
        if lengths is None or numbers is None:
            return None if numbers is None else int(numbers)
        return numbers.long().unsqueeze(1).to(device, non_blocking=True)

    valid = None if lengths is None else torch.arange(sides[1], device=device) < settled(widths)
    numbers = [settled(each) for each in (cells, sites, drawn)]
    return _Plan(*numbers, int(drawn.max()), settled(grown), valid)


def _blocks(draws, sides, block, plan):
    """(rows, H * W) bool: True where one of ``plan.drawn`` blocks lies, centres drawn with replacement."""
    spare = math.prod(sides)  # one more cell takes the centres that a row does not use
    centres = (draws.uniform("block.centre", plan.most).double() * plan.cells).long()
    if isinstance(plan.drawn, torch.Tensor):
        unused = torch.arange(plan.most, device=draws.device) >= plan.drawn
        centres = centres.masked_fill(unused, spare)
    grid = torch.zeros(draws.rows, spare + 1, device=draws.device).scatter_(1, centres, 1.0)
    # A cell is covered when a centre stands up to length // 2 cells after it, or up to the rest of the block before it.
    after = [side // 2 for side in block]
    before = [side - 1 - side // 2 for side in block]
    grid = F.pad(grid[:, :-1].view(-1, 1, *sides), (before[1], after[1], before[0], after[0]))
    return F.avg_pool2d(grid, block, stride=1).flatten(1) > 0  # a mean of zeros and ones, several times faster than max


def _tiles(draws, sides, block, plan):
    """(rows, H * W) bool: True in ``plan.drawn`` cells of a coarse grid, whose last cells the border cuts."""
    coarse = [math.ceil(side / length) for side, length in zip(sides, block, strict=True)]
    keys = draws.uniform("block.tile", math.prod(coarse))
    if isinstance(plan.sites, torch.Tensor):
        keys = keys.masked_fill(torch.arange(keys.shape[1], device=keys.device) >= plan.sites, 2.0)
    tiles = smallest(keys, plan.drawn).view(-1, *coarse)
    tiles = tiles.repeat_interleave(block[0], 1).repeat_interleave(block[1], 2)
    return tiles[:, : sides[0], : sides[1]].flatten(1)


def _grow(draws, mask, sides, plan):
    """Mask neighbours of masked positions, as many as there are or are missing, until no row has too few."""
    for turn in range(mask.shape[1]):
        edge = _neighbours(mask.view(-1, *sides)).flatten(1) & ~mask
        if plan.valid is not None:
            edge &= plan.valid
        missing = plan.grown - mask.sum(1, keepdim=True)
        if not bool(((missing > 0) & edge.any(1, keepdim=True)).any()):
            break
        mask = mask | some_of(edge, missing, draws.uniform(f"block.grow.{turn}", mask.shape[1]))
    return mask


def _neighbours(grid):
    """Positions of (rows, H, W) that have a masked one above, below, left or right."""
    found = torch.zeros_like(grid)
    found[:, 1:] |= grid[:, :-1]
    found[:, :-1] |= grid[:, 1:]
    found[:, :, 1:] |= grid[:, :, :-1]
    found[:, :, :-1] |= grid[:, :, 1:]
    return found
