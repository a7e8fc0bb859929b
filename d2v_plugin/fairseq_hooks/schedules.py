"""A learning rate or a schedule that cannot be is one line.

fairseq takes any number as a learning rate, and its schedules check themselves with bare assertions, or divide by a
stage that has no updates.
"""

from typing import Any

from fairseq import optim
from fairseq.optim import lr_scheduler

from d2v_plugin.errors import UserError


def check_rates(rates: Any) -> None:
    """Raises ``UserError`` for a learning rate below 0 or NaN; ``rates`` is one number, several, or None."""
    for rate in rates if hasattr(rates, "__iter__") else [rates]:
        if isinstance(rate, (int, float)) and not rate >= 0:
            raise UserError(f"optimization.lr must not be negative, got {rate:g}; the recipes use 0.0005 and below")


def install() -> None:
    """Wrap the two functions that the trainer builds its optimizer and its schedule with."""
    build_optimizer, build_lr_scheduler = optim.build_optimizer, lr_scheduler.build_lr_scheduler

    def checked_optimizer(cfg: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq's signature and result."""
        check_rates(getattr(cfg, "lr", None))
        return build_optimizer(cfg, params, *args, **kwargs)

    def checked_lr_scheduler(cfg: Any, optimizer: Any) -> Any:
        """fairseq's signature and result."""
        try:
            return build_lr_scheduler(cfg, optimizer)
        except (AssertionError, ValueError, ZeroDivisionError) as error:
            name = getattr(cfg, "_name", "lr_scheduler")
            reason = "a stage has no updates" if isinstance(error, ZeroDivisionError) else " ".join(str(error).split())
            raise UserError(
                f"lr_scheduler {name}: {reason or 'it refuses its values'}; correct lr_scheduler's fields, or the "
                "optimization.max_update they divide"
            ) from error

    optim.build_optimizer = checked_optimizer
    lr_scheduler.build_lr_scheduler = checked_lr_scheduler
