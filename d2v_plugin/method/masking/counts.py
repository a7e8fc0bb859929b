"""Exact numbers of positions per row, picked at random for the whole batch at once."""

import torch


def smallest(keys, count):
    """(rows, n) bool: True at the ``count`` smallest keys of each row, an int in 0..n or (rows, 1) ints.

    Equal keys go by position, so that every device picks the same. Keys are fp32 multiples of 2**-24 in [-1, 2].
    """
    n = keys.shape[1]
    places = torch.arange(n, device=keys.device)
    # In fp64 there is room below a key's last bit for the position; without ties the faster searches are exact too.
    keys = keys.double() + places * 2.0**-46
    if isinstance(count, int):
        # the fewer ones are found faster
        few = 2 * count <= n
        found = keys.topk(count if few else n - count, dim=1, largest=not few, sorted=False).indices
        return torch.full_like(keys, not few, dtype=torch.bool).scatter_(1, found, few)
    order = keys.argsort(dim=1)
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, order, (places < count).expand_as(order))


def exactly(mask, count, noise, valid=None):
    """Unmask or mask at random until every row has ``count`` masked positions.

    Args:
        mask: (rows, n) bool.
        count: an int, or a tensor of one.
        noise: (rows, n) fp32 in [0, 1), multiples of 2**-24.
        valid: (rows, n) bool or None; the rest is never masked. Holds at least ``count`` positions of every row.
    """
    # Masked positions come first, each kind in random order. Subtracting 1 keeps all 24 bits, adding 1 would not.
    keys = noise - mask.to(noise.dtype)
    return smallest(keys if valid is None else keys.masked_fill(~valid, 2.0), count)


def some_of(candidates, count, noise):
    """At most ``count`` of each row's ``candidates`` (rows, n) bool; a ``count`` below 1 picks none."""
    return candidates & smallest(noise.masked_fill(~candidates, 2.0), count)


def same_count(mask, draws):
    """Give every row the same number of masked positions, the mean, by masking and unmasking at random.

    For masks of other samplers. fairseq's audio data cuts masks out of longer ones, so that counts differ; its model
    then takes the number of positions to keep from the first row, which lets others see some of what they predict.

    Args:
        mask: (rows, n) bool; read from its device once.
        draws: SampleDraws or GeneratorDraws, which are asked only where counts differ.
    Returns:
        ``(mask, count)``, the mask as it came where counts are equal. Where they differ one position is masked and one
        is left at least.
    """
    counts = mask.sum(1).double()
    fewest, most, mean = torch.stack([counts.min(), counts.max(), counts.mean()]).tolist()
    if fewest == most:
        return mask, int(fewest)
    n = mask.shape[1]
    count = min(max(round(mean), 1), n - 1)
    return exactly(mask, count, draws.uniform("same count", n)), count
