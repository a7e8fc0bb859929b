"""Refusing numbers that cannot be, by the name of the setting."""

import math

from d2v_plugin.errors import UserError


def check_range(name, value, low, high=math.inf, *, open_end=False):
    """Raises ``UserError`` unless ``low <= value <= high`` (``< high`` with ``open_end``)."""
    if not low <= value <= high or (open_end and value == high):
        bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        bounds = f"at least {low} and below {high}" if open_end and high != math.inf else bounds
        raise UserError(f"{name} must be {bounds}, got {value}")


def check_shares(where, cfg, keys):
    """Settings from 0 to 1."""
    for key in keys:
        check_range(f"{where}.{key}", getattr(cfg, key), 0, 1)


def check_rates(where, cfg, keys):
    """Settings from 0 up to, and without, 1: dropping everything leaves nothing to scale up."""
    for key in keys:
        check_range(f"{where}.{key}", getattr(cfg, key), 0, 1, open_end=True)


def check_amounts(where, cfg, keys, low=0):
    """Settings of at least ``low``."""
    for key in keys:
        check_range(f"{where}.{key}", getattr(cfg, key), low)
