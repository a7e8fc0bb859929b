"""Exact numbers of positions per row, picked at random for the whole batch at once."""

import torch


def smallest(keys, count):
    """(rows, n) bool: True at the ``count`` smallest keys of each row, an int or (rows, 1) ints.

    Equal keys go by position, so that every device picks the same. Keys are fp32 multiples of 2**-24 in [-1, 2].
    """
    n = keys.shape[1]
    places = torch.arange(n, device=keys.device)
    # In fp64 there is room below a key's last bit for the position; without ties the faster searches are exact too.
    keys = keys.double() + places * 2.0**-46
    if isinstance(count, int):
        chosen = keys.topk(min(max(count, 0), n), dim=1, largest=False, sorted=False).indices
        return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, chosen, True)
    order = keys.argsort(dim=1)
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, order, (places < count).expand_as(order))


def exactly(mask, count, noise, valid=None):
    """Unmask or mask at random until every row has ``count`` masked positions.

    Args:
        mask: (rows, n) bool.
        count: an int, or (rows, 1) ints.
        noise: (rows, n) fp32 in [0, 1), multiples of 2**-24.
        valid: (rows, n) bool or None; the rest is never masked. Holds at least ``count`` positions of every row.
    """
    # Masked positions come first, each kind in random order. Subtracting 1 keeps all 24 bits, adding 1 would not.
    keys = noise - mask.to(noise.dtype)
    return smallest(keys if valid is None else keys.masked_fill(~valid, 2.0), count)


def some_of(candidates, count, noise):
    """At most ``count`` of each row's ``candidates`` (rows, n) bool; a ``count`` below 1 picks none."""
    return candidates & smallest(noise.masked_fill(~candidates, 2.0), count)
