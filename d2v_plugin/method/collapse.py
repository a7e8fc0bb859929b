"""Collapse watch: notices when representations stop telling frames apart, and stops the run with advice.

Target variance alone can look healthy while the feature extractor's output has shrunk to a few
directions (fairseq issue 5239), so spread and effective rank are watched at three places.
"""

import math

import torch

from d2v_plugin.errors import UserError


class CollapseError(UserError):
    """The run has collapsed or diverged. fairseq writes ``crash.pt`` before it passes this on."""


REMEDIES = (
    "lower the peak learning rate or lengthen the warm-up; raise ema_decay or shorten ema_anneal_end_step; "
    "keep instance_norm_target_layer (speech) or layer_norm_target_layer (text, images) on; "
    "check that weight decay is decoupled (d2v_adamw) and that the audio is not silence"
)

NOT_FINITE = (
    "the loss is not finite at update {update}. Likely causes and remedies: a learning rate too high "
    "(lower it or lengthen the warm-up), fp16 without loss scaling (use common.amp or bf16), or NaN in the "
    "input (run `d2v manifest check --decode`). The last state is in crash.pt."
)
MIN_ROWS = 64


@torch.no_grad()
def spread(x, max_rows=1024):
    """Standard deviation and effective rank of the rows of ``x``.

    Args:
        x: (..., C) activations; at most ``max_rows`` rows, evenly spaced, are used.
    Returns:
        ``(std, rank)``: mean over channels of the std over rows, and ``exp(entropy)`` of the normalised
        singular values, between 1 and C. 0-d fp32 tensors on the device of ``x``.
    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
    """
    rows = x.detach().reshape(-1, x.shape[-1])
    if len(rows) == 0:  # a batch of nothing but padding
        return rows.new_zeros((), dtype=torch.float32), rows.new_ones((), dtype=torch.float32)
    rows = rows[:: math.ceil(rows.shape[0] / max_rows)].float()
    rows = rows - rows.mean(0)
    p = torch.linalg.svdvals(rows)
    p = p / p.sum().clamp(min=1e-12)
    return rows.std(0).mean(), torch.special.entr(p).sum().exp()


class CollapseWatch:
    """Checks once per ``interval`` updates; in between nothing is read from the device.

    Args:
        min_target_var, min_pred_var: stop when the std of targets or predictions falls below.
        guard_updates: no stopping for low variance up to this update (early training is flat by nature).
        interval: updates between checks.
    """

    def __init__(self, min_target_var, min_pred_var, guard_updates=5000, interval=100):
        self.floors = {"target_var": min_target_var, "pred_var": min_pred_var}
        self.guard_updates = guard_updates
        self.interval = max(1, interval)
        self._checked = None
        self._ranks = {}

    def due(self, update):
        """True once per ``interval`` updates, for the first batch of such an update."""
        if update % self.interval or update == self._checked:
            return False
        self._checked = update
        return True

    def measure(self, padding_mask=None, **activations):
        """``{name}_std`` and ``{name}_rank`` of each tensor, for the log.

        Args:
            padding_mask: (B, T) bool; padded frames do not count.
            activations: (B, T, C) each.
        Returns:
            The same keys on every rank, as fairseq's summing of logs needs. The rank of fewer than
            ``MIN_ROWS`` frames would tell about the batch: then the last one stands again.
        """
        logs = {}
        for name, x in activations.items():
            frames = x.flatten(0, 1) if padding_mask is None else x[~padding_mask]
            logs[f"{name}_std"], rank = spread(frames)
            if len(frames) >= MIN_ROWS or name not in self._ranks:
                self._ranks[name] = rank
            logs[f"{name}_rank"] = self._ranks[name]
        return logs

    def check(self, update, finite, **variances):
        """Raises ``CollapseError`` on a non-finite loss or, after the guard period, on low variance.

        Args:
            finite: whether the loss is, on every rank.
            variances: ``target_var`` and ``pred_var``, Python numbers, over all ranks.
        """
        if not finite:
            raise CollapseError(NOT_FINITE.format(update=update))
        if update <= self.guard_updates:
            return
        for name, value in variances.items():
            floor = self.floors[name]
            if value < floor:
                side = "teacher's targets" if name == "target_var" else "student's predictions"
                raise CollapseError(
                    f"collapse at update {update}: the {side} hardly vary ({name} {value:.4f} < min_{name} {floor}). "
                    f"Likely causes and remedies: {REMEDIES}. The last state is in crash.pt."
                )


def check_finite(update, loss):
    """Raises ``CollapseError`` when ``loss`` is not finite. Reads the device."""
    if not math.isfinite(float(loss.detach())):
        raise CollapseError(NOT_FINITE.format(update=update))
