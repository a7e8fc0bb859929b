"""``d2v_adamw``: AdamW with decoupled weight decay in one fused pass, and the decay each parameter asks for."""

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

SCALE = "weight_decay_scale"  # key of a parameter's overrides, and of the group it ends up in


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
        self._optimizer = self._build(self._by_weight_decay(list(params)))

    def _by_weight_decay(self, params):
        """``params``, in one group for each decay that they ask for; the same list where all take the common one.

        A list of groups already made is left as it is.
        """
        scales = [weight_decay_scale(p) for p in params]
        if not self.cfg.weight_decay_overrides or all(scale == 1 for scale in scales):
            return params
        groups = {}
        for p, scale in zip(params, scales, strict=True):
            groups.setdefault(scale, []).append(p)
        return [
            {"params": members, "weight_decay": self.cfg.weight_decay * scale, SCALE: scale}
            for scale, members in groups.items()
        ]

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """As fairseq's; a weight decay in ``optimizer_overrides`` leaves undecayed parameters undecayed."""
        super().load_state_dict(state_dict, optimizer_overrides)
        if optimizer_overrides and "weight_decay" in optimizer_overrides:
            for group in self.param_groups:
                group["weight_decay"] *= group.get(SCALE, 1)

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
