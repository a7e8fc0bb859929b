"""Span masks over time or channels, drawn for the whole batch at once.

Follows the rules of fairseq's ``compute_mask_indices`` (the wav2vec 2.0 recipe, arXiv:2006.11477,
section 4.2): the number of spans is ``prob * length / span`` with probabilistic rounding, starts are
drawn without replacement, spans may overlap unless told otherwise. Two of its settings no longer run
there (``uniform`` lengths and ``no_overlap`` call functions NumPy has dropped); they do here.
"""

import torch

from d2v_plugin.errors import UserError

SELECTIONS = ("static", "uniform", "normal", "poisson")


def span_mask(
    lengths,
    T,
    *,
    prob,
    span,
    selection="static",
    other=0.0,
    min_masks=0,
    no_overlap=False,
    min_space=0,
    require_same_masks=True,
    mask_dropout=0.0,
    generator=None,
    name="mask",
):
    """Draw a (B, T) bool mask on the CPU, True = masked.

    Args:
        lengths: B valid lengths in frames, host integers; nothing past them is masked.
        T: width of the mask.
        prob: share of frames that spans would cover if they never overlapped.
        span: mean span length in frames.
        selection: ``static`` (every span has ``span`` frames), ``uniform`` (in [other, 2 * span]),
            ``normal`` (std ``other``, at least 1) or ``poisson``.
        min_masks: at least this many spans in every row.
        no_overlap: spans keep ``min_space`` frames between them; spans that do not fit are left out.
        require_same_masks: thin every row at random to the smallest masked count of the batch.
        mask_dropout: share of the masked frames unmasked again.
        generator: CPU ``torch.Generator``.
        name: of the configuration keys, for messages: ``mask`` or ``mask_channel``.
    Raises:
        UserError: a span longer than a row allows, an unknown ``selection``, or a row that would be masked whole.
    """
    if selection not in SELECTIONS:
        raise UserError(f"{name}_selection must be one of {', '.join(SELECTIONS)}, got {selection!r}")
    if selection == "uniform" and not 0 <= other <= 2 * span:
        raise UserError(f"{name}_other must lie between 0 and 2 * {name}_length for uniform lengths, got {other}")
    lengths = torch.as_tensor(lengths, dtype=torch.long)
    B = lengths.numel()
    count = (prob * lengths / span + torch.rand(B, generator=generator)).long().clamp_(min=min_masks)
    n = int(count.max()) if B else 0
    if n == 0:
        return torch.zeros(B, T, dtype=torch.bool)

    spans = _span_lengths(selection, span, other, (B, n), generator)
    used = torch.arange(n) < count[:, None]  # (B, n)
    # A Poisson draw may leave a row with spans of no length; upstream then masks one span of the mean length.
    empty = (spans * used).sum(1) == 0
    spans[:, 0] = torch.where(empty & used[:, 0], torch.minimum(torch.tensor(span), lengths - 1), spans[:, 0])

    if no_overlap:
        starts, used = _disjoint_starts(lengths, spans, used, min_space, generator)
    else:
        starts = _overlapping_starts(lengths, T, spans, used, count, generator)
    mask = _cover(starts, spans, used, T) & (torch.arange(T) < lengths[:, None])

    blind = (count >= lengths) | (mask.sum(1) >= lengths)
    if bool(blind.any()):
        raise UserError(
            f"{name}_prob {prob} with {name}_length {span} leaves nothing of {int(lengths[blind][0])} "
            + ("frames: lower one of them, or raise task.min_sample_size" if name == "mask" else "channels: lower one")
        )
    return _reduce(mask, require_same_masks, mask_dropout, generator)


def _reduce(mask, require_same_masks, mask_dropout, generator):
    """Unmask at random: down to the smallest count of the batch, then by the share ``mask_dropout``."""
    if require_same_masks:
        mask = _thin(mask, mask.sum(1).min().expand(mask.shape[0]), generator)
    if mask_dropout > 0:
        kept = mask.sum(1) - torch.round(mask.sum(1) * mask_dropout).long()
        mask = _thin(mask, kept, generator)
    return mask


def _span_lengths(selection, span, other, shape, generator):
    if selection == "static":
        return torch.full(shape, span, dtype=torch.long)
    if selection == "uniform":
        return torch.randint(int(other), 2 * span + 1, shape, generator=generator)
    if selection == "normal":
        drawn = span + other * torch.randn(shape, generator=generator)
        return drawn.round().long().clamp_(min=1)
    return torch.poisson(torch.full(shape, float(span)), generator=generator).long()


def _overlapping_starts(lengths, T, spans, used, count, generator):
    """Distinct starts per row, uniform over the places where the shortest span of the row still fits."""
    shortest = spans.masked_fill(~used, torch.iinfo(torch.long).max).amin(1)
    shortest = torch.where(count > 0, shortest, 0)
    places = lengths - shortest
    places = torch.where(places <= count, count + 1, places)  # many spans in a short row: let the last ones hang over
    keys = torch.rand(lengths.numel(), T, generator=generator)
    keys.masked_fill_(torch.arange(T) >= places[:, None], 2.0)
    return keys.argsort(dim=1)[:, : spans.shape[1]]


def _disjoint_starts(lengths, spans, used, min_space, generator):
    """Spread the frames left over between the spans, every division equally likely."""
    room = torch.where(used, spans + min_space, 0).cumsum(1) - min_space  # frames the first j spans need
    used = used & (room <= lengths[:, None])
    taken = torch.where(used, spans + min_space, 0)
    free = (lengths - (taken.sum(1) - min_space).clamp(min=0)).clamp(min=0)
    gaps = (torch.rand(spans.shape, generator=generator) * (free[:, None] + 1)).long()
    gaps = torch.where(used, gaps, torch.iinfo(torch.long).max).sort(1).values
    before = taken.cumsum(1) - taken
    return torch.where(used, gaps + before, 0), used


def _cover(starts, spans, used, T):
    """(B, T) bool: True where any used span lies, by adding up where spans open and close."""
    ends = torch.minimum(starts + spans, torch.tensor(T))
    step = used.long()
    edges = torch.zeros(starts.shape[0], T + 1, dtype=torch.long)
    edges.scatter_add_(1, starts.clamp(max=T), step)
    edges.scatter_add_(1, ends, -step)
    return edges.cumsum(1)[:, :T] > 0


def _thin(mask, keep, generator):
    """Unmask at random until row b has ``keep[b]`` masked frames."""
    keys = torch.rand(mask.shape, generator=generator).masked_fill_(~mask, -1.0)
    rank = keys.argsort(dim=1, descending=True).argsort(dim=1)
    return rank < keep[:, None]
