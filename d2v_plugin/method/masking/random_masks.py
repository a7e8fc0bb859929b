"""Masks of single positions, each set of the right size equally likely (the masks of MAE, arXiv:2111.06377)."""

from d2v_plugin.errors import UserError
from d2v_plugin.method.masking.counts import smallest


def random_masked_count(L, prob):
    """Masked positions in every row of ``random_mask``: an int.

    Raises:
        UserError: ``prob`` outside 0..1, or so that nothing is masked, or nothing left.
    """
    if not 0 <= prob <= 1:
        raise UserError(f"mask_prob must lie between 0 and 1, got {prob}")
    kept = int(L * (1 - prob))
    if kept == 0:
        raise UserError(f"mask_prob {prob} leaves nothing of {L} positions: lower it")
    if kept == L:
        raise UserError(f"mask_prob {prob} masks none of {L} positions: raise it")
    return L - kept


def random_mask(draws, L, prob):
    """(rows, L) bool, True = masked: ``int(L * (1 - prob))`` positions are kept, as in upstream's ``random_masking``.

    Args:
        draws: SampleDraws or GeneratorDraws.
    Raises:
        UserError: see ``random_masked_count``.
    """
    return ~smallest(draws.uniform("random", L), L - random_masked_count(L, prob))
