"""The few places where fairseq itself has to behave differently, replaced at run time.

fairseq reads every checkpoint with a bare ``torch.load``, which torch >= 2.6 refuses for its own files, writes them
so that a full disk costs the last good one, and answers a mistyped path with sixty lines of traceback. ``install()``
replaces those functions, nothing else, and is called by the tasks when fairseq imports them.

Each module here explains one replacement and why it is safe.
"""

from d2v_plugin.fairseq_hooks import (
    broadcast,
    edit_distance,
    errors,
    fine_tuning,
    loading,
    pretrained_configuration,
    repeated_warnings,
    resuming,
    saving,
    schedules,
    sentence_scores,
)

_installed = False


def install() -> None:
    """Replace the functions once; further calls do nothing."""
    global _installed
    if _installed:
        return
    _installed = True
    saving.install()
    loading.install()
    resuming.install()
    fine_tuning.install()
    pretrained_configuration.install()
    broadcast.install()
    edit_distance.install()
    schedules.install()
    sentence_scores.install()
    errors.install()
    repeated_warnings.install()
