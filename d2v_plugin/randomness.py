"""Random draws that repeat: a generator is a function of the seed of the update, a name and a counter."""

import zlib

import torch


class DrawStream:
    """A named stream of CPU generators, restarted whenever torch's seed changes.

    fairseq seeds torch with ``seed + num_updates`` before every update. Hanging every draw on that
    number makes masks and LayerDrop a function of (seed, update, name, draws so far in this update):
    an uninterrupted run and a resumed one draw the same, whatever else consumed random numbers.
    (Seeding torch twice with one number in one process is not a new update, and does not restart the stream.)

    Args:
        name: streams of different names are independent.
        rank: streams of different ranks are independent. Leave it at 0 where every rank must draw
            alike, as LayerDrop must (a rank that skips another layer hangs in the all-reduce).
    """

    def __init__(self, name, rank=0):
        self._key = zlib.crc32(f"{name}:{rank}".encode())
        self._seed = None
        self._draws = 0

    def generator(self):
        """Returns a fresh ``torch.Generator`` on the CPU; the next call returns another one."""
        seed = torch.initial_seed()
        if seed != self._seed:
            self._seed, self._draws = seed, 0
        mixed = zlib.crc32(f"{seed}:{self._draws}".encode(), self._key)
        self._draws += 1
        return torch.Generator().manual_seed((self._key << 31) ^ mixed)


def data_rank():
    """Rank of this process among those that hold different data, 0 when not distributed."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if distributed else 0
