"""Tiny ``data2vec_vision`` models, images and masks for them; upstream's beside ours where asked for."""

import torch
import upstream

from d2v_plugin.models.data2vec_vision import Data2VecVisionModel
from d2v_plugin.models.data2vec_vision_config import Data2VecVisionConfig

SIDE = 6
TINY = {
    "image_size": 24,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "num_mask_patches": 20,
    "min_mask_patches_per_block": 3,
    "max_mask_patches_per_block": 36,
    "drop_path": 0.0,
    "layer_scale_init_value": 0.1,
    "average_top_k_layers": 2,
    "ema_decay": 0.9,
    "ema_end_decay": 0.99,
    "ema_anneal_end_step": 30,
}


def build(**overrides):
    """Our model without a teacher."""
    return Data2VecVisionModel(Data2VecVisionConfig(**{**TINY, **overrides}))


def tiny(**overrides):
    """Our model, ready to train."""
    model = build(**overrides)
    model.set_num_updates(0)
    return model


def oracle(**overrides):
    """Upstream's model without a teacher; it takes a mask as ``theirs.given``, and bias of its own in each block."""
    module = upstream.load("data2vec_vision")
    model = module.Data2VecVisionModel(module.Data2VecVisionConfig(**{**TINY, **overrides}))
    model.make_mask = lambda *_: model.given.view(-1, SIDE, SIDE)
    with_own_bias(module)
    return model


def with_own_bias(module):
    """Let blocks with a position bias of their own run: upstream's stop at a false assertion, and print what is None.

    Their bias goes in where a shared one would, which is what they would have added.
    """
    if hasattr(module.Attention, "plain"):
        return
    module.Attention.plain = module.Attention.forward

    def forward(self, x, rel_pos_bias=None):
        table = self.relative_position_bias_table
        if table is None:
            return self.plain(x, rel_pos_bias)
        bias = table[self.relative_position_index].permute(2, 0, 1)
        self._parameters["relative_position_bias_table"] = None
        try:
            return self.plain(x, bias)
        finally:
            self._parameters["relative_position_bias_table"] = table

    module.Attention.forward = forward
    module.print = lambda *_: None


def images(B=3):
    return torch.randn(B, 3, 24, 24)


def masks(B=3):
    """(B, 36) bool with different counts."""
    return torch.stack([torch.rand(SIDE**2).argsort() < 12 + 3 * b for b in range(B)])
