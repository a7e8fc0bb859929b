"""``d2v_adamw``: AdamW with decoupled weight decay in one fused pass, and the decay and rate each parameter asks for.

A parameter asks with ``optim_overrides = {"optimizer": {"lr_scale": ..., "weight_decay_scale": ...}}``, as it does of
fairseq's ``composite`` with ``dynamic_groups: true``. That one puts parameters that ask for the same into an optimiser
of their own, whose rate it scales; the decay it forgets. So inside it only the decay is left to do here.
"""

import ast
import logging
from dataclasses import dataclass, field
from typing import Any, List

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II, OmegaConf

from d2v_plugin.errors import UserError

logger = logging.getLogger(__name__)

# keys of a parameter's overrides, and of the group it ends up in
SCALE = "weight_decay_scale"
LR_SCALE = "lr_scale"
# what composite writes into the overrides of the parameters whose rate it scales
SORTED = "group_name"


@dataclass
class D2vAdamWConfig(FairseqDataclass):
    adam_betas: Any = field(default=(0.9, 0.98), metadata={"help": "betas, as a list or as text '(0.9, 0.98)'"})
    adam_eps: float = field(default=1e-6, metadata={"help": "epsilon"})
    weight_decay: float = field(default=0.01, metadata={"help": "decoupled weight decay"})
    weight_decay_overrides: bool = field(
        default=True,
        metadata={
            "help": "multiply the decay of each parameter by the weight_decay_scale it asks for (data2vec 2.0: 0 for "
            "1-D parameters, biases and ALiBi scales). fairseq's adam and composite never do; neither can this one "
            "where fp16 flattens the parameters, so set common.fp16_no_flatten_grads"
        },
    )
    use_apex: bool = field(default=False, metadata={"help": "NVIDIA apex's FusedAdam instead of torch's fused AdamW"})
    tpu: bool = II("common.tpu")
    lr: List[float] = II("optimization.lr")


@register_optimizer("d2v_adamw", dataclass=D2vAdamWConfig)
class D2vAdamW(FairseqOptimizer):
    """torch's fused AdamW, or apex's where installed and asked for; fairseq's parameter groups are honoured.

    The update is the one of fairseq's ``adam`` (decoupled weight decay), so recipes carry over.
    """

    def __init__(self, cfg, params):
        super().__init__(cfg)
        self._optimizer = self._build(self._by_request(list(params)))

    def _by_request(self, params):
        """``params``, in one group for each decay and rate that they ask for; the same list where none asks.

        A list of groups already made is left as it is.
        """
        asks_for_decay = weight_decay_scale if self.cfg.weight_decay_overrides else lambda p: 1.0
        scales = [(asks_for_decay(p), lr_scale(p)) for p in params]
        if all(scale == (1, 1) for scale in scales):
            return params
        groups = {}
        for p, scale in zip(params, scales, strict=True):
            groups.setdefault(scale, []).append(p)
        config = self.optimizer_config
        return [
            {
                "params": members,
                "weight_decay": config["weight_decay"] * decay,
                "lr": config["lr"] * rate,
                SCALE: decay,
                LR_SCALE: rate,
            }
            for (decay, rate), members in groups.items()
        ]

    def get_lr(self):
        """The rate that the schedule sets; a group's own is this times its ``lr_scale``."""
        group = next((g for g in self.param_groups if g.get(LR_SCALE, 1) > 0), self.param_groups[0])
        return group["lr"] / (group.get(LR_SCALE, 1) or 1)

    def set_lr(self, lr):
        for group in self.param_groups:
            group["lr"] = lr * group.get(LR_SCALE, 1)

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """As fairseq's; a decay or a rate in ``optimizer_overrides`` is scaled as parameters asked for."""
        super().load_state_dict(state_dict, optimizer_overrides)
        for key, scale in (("weight_decay", SCALE), ("lr", LR_SCALE)):
            if optimizer_overrides and key in optimizer_overrides:
                for group in self.param_groups:
                    group[key] *= group.get(scale, 1)

    def _build(self, params):
        if self.cfg.use_apex:
            return _apex_fused_adam()(params, adam_w_mode=True, **self.optimizer_config)
        return torch.optim.AdamW(params, fused=True, **self.optimizer_config)

    @property
    def optimizer_config(self):
        """What a parameter group may override (fairseq re-applies it to loaded state)."""
        lr = self.cfg.lr
        return {
            "lr": lr[0] if OmegaConf.is_list(lr) or isinstance(lr, (list, tuple)) else lr,
            "betas": parse_betas(self.cfg.adam_betas),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_flat_params(self):
        return True

    @property
    def supports_memory_efficient_fp16(self):
        # fused AdamW wants parameters and moments of one dtype, so fp16 runs keep fp32 master weights.
        return False


def weight_decay_scale(parameter):
    """What a model asks for with ``parameter.optim_overrides = {"optimizer": {"weight_decay_scale": ...}}``, else 1."""
    overrides = getattr(parameter, "optim_overrides", None) or {}
    return float(overrides.get("optimizer", {}).get(SCALE, 1))


def lr_scale(parameter):
    """The same of ``lr_scale``; 1 where ``composite`` has seen to it."""
    overrides = getattr(parameter, "optim_overrides", None) or {}
    return 1.0 if SORTED in overrides else float(overrides.get("optimizer", {}).get(LR_SCALE, 1))


def parse_betas(value):
    """Two numbers in [0, 1) from a list, a tuple or the text ``(0.9, 0.98)``; read as data.

    Raises:
        UserError: anything else.
    """
    try:
        betas = tuple(float(b) for b in (ast.literal_eval(value) if isinstance(value, str) else value))
    except (ValueError, SyntaxError, TypeError):
        betas = ()
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(f"optimizer.adam_betas must be two numbers in [0, 1) such as [0.9, 0.98], got {value!r}")
    return betas


def _apex_fused_adam():
    try:
        from apex.optimizers import FusedAdam
    except ImportError as error:
        raise UserError(
            "optimizer.use_apex needs NVIDIA apex built from its repository (the PyPI package named apex is another "
            "one); install it or set use_apex to false for torch's fused AdamW"
        ) from error
    return FusedAdam
