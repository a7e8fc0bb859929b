"""Which positions the encoder keeps, which are masked, and the way from one order to the other."""

from dataclasses import dataclass

import torch

from d2v_plugin.errors import UserError


@dataclass
class Masked:
    """Masks of R = B * M rows (row ``b * M + m``), every row with the same number of masked positions.

    Attributes:
        mask: (R, T) bool, True = masked and predicted.
        keep: (R, S) int64, positions that go through the encoder; the unmasked ones in order, then any kept masked.
        rows: (R * N,) int64, flat positions ``r * T + t`` of the masked, in order.
    """

    mask: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, mask, count=None, kept_share=0.0, draws=None):
        """Read a mask.

        Args:
            mask: (R, T) bool or 0/1 numbers.
            count: masked positions in every row. Without it they are counted, which reads the device.
            kept_share: share of the masked positions that stay in the encoder's input, picked at random.
            draws: ``SampleDraws`` or ``GeneratorDraws`` of the R rows, for which ones; with ``kept_share`` only.
        Raises:
            UserError: rows with different counts, all positions masked or none.
        """
        mask = mask.bool()
        R, T = mask.shape
        if count is None:
            counts = mask.sum(1)
            count = int(counts[0])
            if not bool((counts == count).all()):
                raise UserError(
                    f"every row of a mask needs the same number of masked positions, got {counts.tolist()[:8]}; "
                    "draw masks with require_same_masks"
                )
        if not 0 < count < T:
            left = "nothing of" if count >= T else "no masked position in"
            raise UserError(
                f"the mask leaves {left} {T} positions; change mask_prob, mask_prob_adjust or mask_length"
            )
        key = mask.float()
        if kept_share > 0:
            key = key + key * draws.uniform("keep", T)
        order = torch.argsort(key, dim=1, stable=True)
        keep = order[:, : T - count + round(count * kept_share)]
        masked = order[:, T - count :]
        if kept_share > 0:
            masked = masked.sort(1).values
        rows = (masked + T * torch.arange(R, device=mask.device)[:, None]).flatten()
        return cls(mask, keep, rows)

    @property
    def share(self):
        """Share of positions that the encoder does not see."""
        return 1 - self.keep.shape[1] / self.mask.shape[1]

    def target_rows(self, clones):
        """(R * N,) flat positions ``b * T + t`` in the un-cloned batch, which the M clones of a sample share."""
        T = self.mask.shape[1]
        row, position = self.rows // T, self.rows % T
        return row // clones * T + position

    def gather(self, x):
        """Kept positions of (R, T, ...) -> (R, S, ...)."""
        index = self.keep.view(*self.keep.shape, *[1] * (x.dim() - 2))
        return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

    def restore(self, kept, filling):
        """The full sequence: ``filling`` (R, T, C) with ``kept`` (R, S, C) put where it came from."""
        return filling.scatter(1, self.keep.unsqueeze(-1).expand_as(kept), kept)


def gather_clones(x, masked, clones):
    """Kept positions of the M clones of each sample, read from the one copy of its features.

    Args:
        x: (B, T, C).
        masked: ``Masked`` of B * M rows.
    Returns:
        (B * M, S, C). The gradient of a position is summed over clones in a fixed order.
    """
    B, T, C = x.shape
    index = masked.keep.view(B, clones, -1, 1).expand(-1, -1, -1, C)
    return x.unsqueeze(1).expand(-1, clones, -1, -1).gather(2, index).flatten(0, 1)
