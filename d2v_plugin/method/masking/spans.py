"""Span masks over time or channels, drawn for the whole batch at once.

Follows the rules of fairseq's ``compute_mask_indices`` (the wav2vec 2.0 recipe, arXiv:2006.11477,
section 4.2): the number of spans is ``prob * length / span`` with probabilistic rounding, starts are
drawn without replacement, spans may overlap unless told otherwise. Two of its settings no longer run
there (``uniform`` lengths and ``no_overlap`` call functions NumPy has dropped); they do here.
"""

import torch

from d2v_plugin.errors import UserError
from d2v_plugin.method.masking.counts import exactly, some_of
from d2v_plugin.method.masking.draws import GeneratorDraws, SampleDraws

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
    draws=None,
    add_masks=False,
):
    """Draw a (B, T) bool mask, True = masked; on the CPU from a generator, otherwise where ``draws`` are.

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
        name: of the configuration keys, ``mask`` or ``mask_channel``, for messages; names draw independently.
        draws: SampleDraws or GeneratorDraws of B rows, instead of ``generator``. With SampleDraws a row depends on the
            others by the common count only, nothing is read back from the device, and a row that chance would mask
            whole keeps one frame; ``static`` spans that may overlap only.
        add_masks: with ``require_same_masks``, mask more frames at random, up to the largest count of the batch
            (or what leaves a frame of the shortest row), instead of thinning.
    Raises:
        UserError: a span longer than a row allows, an unknown ``selection``, a row that would be masked whole, or
            settings that SampleDraws do not serve.
    """
    sampled = isinstance(draws, SampleDraws)
    _check(selection, other, span, no_overlap, name, sampled)
    lengths = torch.as_tensor(lengths, dtype=torch.long)
    B, host_lengths = lengths.numel(), lengths
    if draws is None:
        draws = GeneratorDraws(generator, B)
    if sampled:
        _leave_something(host_lengths, prob, span, min_masks, name)
    lengths = lengths.to(draws.device, non_blocking=True)
    count = (prob * lengths / span + draws.uniform(f"{name}.count", 1)[:, 0]).long().clamp_(min=min_masks)
    if sampled:
        # A bound, since the largest count stands on the device; one more because the sum above is rounded in fp32.
        n = min(T, max(min_masks, int(prob * int(host_lengths.max()) / span) + 2)) if B else 0
    else:
        n = int(count.max()) if B else 0
    if n == 0:
        return torch.zeros(B, T, dtype=torch.bool, device=draws.device)

    frames = torch.arange(T, device=draws.device)
    spans = _span_lengths(selection, span, other, (B, n), draws)
    used = torch.arange(n, device=draws.device) < count[:, None]  # (B, n)
    if selection != "static":
        # A Poisson draw may leave a row with spans of no length; upstream then masks one span of the mean length.
        empty = (spans * used).sum(1) == 0
        spans[:, 0] = torch.where(empty & used[:, 0], (lengths - 1).clamp(max=span), spans[:, 0])

    if no_overlap:
        starts, used = _disjoint_starts(lengths, spans, used, min_space, draws.generator)
    else:
        starts = _overlapping_starts(lengths, spans, used, count, draws.uniform(f"{name}.start", T))
    valid = frames < lengths[:, None]
    mask = _cover(starts, spans, used, T) & valid

    if sampled:
        whole = (mask.sum(1, keepdim=True) >= lengths[:, None]) & valid
        mask &= ~some_of(whole, 1, draws.uniform(f"{name}.keep", T))
    else:
        blind = (count >= lengths) | (mask.sum(1) >= lengths)
        if bool(blind.any()):
            raise _nothing_left(int(lengths[blind][0]), prob, span, name)
    if require_same_masks:
        noise = draws.uniform(f"{name}.same", T)
        mask = _same_masks(mask, valid, int(host_lengths.min()) - 1 if add_masks else None, noise)
    if mask_dropout > 0:
        kept = mask.sum(1) - torch.round(mask.sum(1) * mask_dropout).long()
        mask = _thin(mask, kept, draws.uniform(f"{name}.drop", T))
    return mask


def _same_masks(mask, valid, room, noise):
    """Thin rows to the smallest count; or, where there is ``room`` for so many, fill them up to the largest."""
    counts = mask.sum(1)
    if room is None:
        return _thin(mask, counts.min().expand_as(counts), noise)
    return exactly(mask, counts.max().clamp(max=room), noise, valid)


def _check(selection, other, span, no_overlap, name, sampled):
    if selection not in SELECTIONS:
        raise UserError(f"{name}_selection must be one of {', '.join(SELECTIONS)}, got {selection!r}")
    if selection == "uniform" and not 0 <= other <= 2 * span:
        raise UserError(f"{name}_other must lie between 0 and 2 * {name}_length for uniform lengths, got {other}")
    if sampled and (selection != "static" or no_overlap):
        raise UserError(
            f"masks by sample are drawn with {name}_selection=static and no_{name}_overlap=false only, got "
            f"{selection!r} and {no_overlap}: change them"
        )


def _leave_something(lengths, prob, span, min_masks, name):
    """Known before drawing: as many spans as frames, each at a place of its own, mask a row whole."""
    for length in lengths.unique().tolist():
        if max(min_masks, int(prob * length / span)) >= length:
            raise _nothing_left(length, prob, span, name)


def _nothing_left(length, prob, span, name):
    return UserError(
        f"{name}_prob {prob} with {name}_length {span} leaves nothing of {length} "
        + ("frames: lower one of them, or raise task.min_sample_size" if name == "mask" else "channels: lower one")
    )


def _span_lengths(selection, span, other, shape, draws):
    if selection == "static":
        return torch.full(shape, span, dtype=torch.long, device=draws.device)
    generator = draws.generator
    if selection == "uniform":
        return torch.randint(int(other), 2 * span + 1, shape, generator=generator)
    if selection == "normal":
        drawn = span + other * torch.randn(shape, generator=generator)
        return drawn.round().long().clamp_(min=1)
    return torch.poisson(torch.full(shape, float(span)), generator=generator).long()


def _overlapping_starts(lengths, spans, used, count, keys):
    """Distinct starts per row, uniform over the places where the shortest span of the row still fits."""
    shortest = spans.masked_fill(~used, torch.iinfo(torch.long).max).amin(1)
    shortest = torch.where(count > 0, shortest, 0)
    places = lengths - shortest
    places = torch.where(places <= count, count + 1, places)  # many spans in a short row: let the last ones hang over
    keys = keys.masked_fill(torch.arange(keys.shape[1], device=keys.device) >= places[:, None], 2.0)
    return keys.argsort(dim=1, stable=True)[:, : spans.shape[1]]


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
    ends = (starts + spans).clamp(max=T)
    step = used.long()
    edges = torch.zeros(starts.shape[0], T + 1, dtype=torch.long, device=starts.device)
    edges.scatter_add_(1, starts.clamp(max=T), step)
    edges.scatter_add_(1, ends, -step)
    return edges.cumsum(1)[:, :T] > 0


def _thin(mask, keep, noise):
    """Unmask at random until row b has ``keep[b]`` masked frames."""
    order = noise.masked_fill(~mask, -1.0).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) < keep[:, None]
