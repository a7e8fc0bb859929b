"""In what the configuration of a run differs from that of the run it goes on with, as far as it matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

WHOLE = ("task", "model", "criterion", "optimizer", "lr_scheduler", "optimization")
# of the other groups only what changes results
SOME = {
    "common": ("seed", "fp16", "bf16"),
    "dataset": ("max_tokens", "batch_size", "train_subset", "required_batch_size_multiple"),
    "distributed_training": ("distributed_world_size",),
}
# the pre-trained model's own configuration, which fine-tuning stores beside its file's name
STORED = ("w2v_args", "d2v_args", "pretrained_model_args")
AT_MOST = 12
# what fields of tasks, models and schedules refer to
REFERRED_TO = ("common", "dataset", "optimization")
ABSENT = object()


def differences(saved: Any, own: Any) -> str:
    """``task.data: a -> b, optimization.lr: [0.0005] -> [0.001]``; "" where nothing differs or is known.

    Args:
        saved: configuration in a checkpoint, nested dictionaries or None.
        own: configuration of this run.
    """
    if not isinstance(saved, Mapping):
        return ""
    before, now = dict(_leaves(saved)), dict(_leaves(_plain(own)))
    changed = {
        key: (before.get(key, ABSENT), now.get(key, ABSENT))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }
    found = [
        f"{key}: {_word(values[0])} -> {_word(values[1])}"
        for key, values in changed.items()
        if not _refers(key, values, changed)
    ]
    more = f" and {len(found) - AT_MOST} more" if len(found) > AT_MOST else ""
    return ", ".join(found[:AT_MOST]) + more


def model_differences(saved: Any, own: Any) -> str:
    """``differences`` of the model alone."""
    if not isinstance(saved, Mapping):
        return ""
    return differences({"model": saved.get("model") or {}}, {"model": _plain(own).get("model") or {}})


def _refers(key: str, values: tuple, changed: Mapping[str, tuple]) -> bool:
    """Whether a field of the same name in fairseq's own groups changed in the same way and is told anyway."""
    group, name = key.split(".")[0], key.split(".")[-1]
    return group not in REFERRED_TO and any(changed.get(f"{other}.{name}") == values for other in REFERRED_TO)


def _plain(cfg: Any) -> Any:
    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True) if OmegaConf.is_config(cfg) else cfg


def _leaves(cfg: Mapping) -> Iterator[tuple[str, Any]]:
    for group, settings in cfg.items():
        if not isinstance(settings, Mapping) or (group not in WHOLE and group not in SOME):
            continue
        for key, value in _flat(settings, group):
            if group in WHOLE or key.split(".")[1] in SOME[group]:
                yield key, value


def _flat(settings: Mapping, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name in STORED:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", _value(value)


def _value(value: Any) -> Any:
    """Values that a file and a configuration spell differently: tuples and lists, enumerations and their names."""
    if isinstance(value, (list, tuple)):
        return [_value(item) for item in value]
    return getattr(value, "name", value)


def _word(value: Any) -> str:
    return "not there" if value is ABSENT else str(value)[:80]
