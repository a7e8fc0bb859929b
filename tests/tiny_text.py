"""Tiny ``data2vec_text`` models, upstream's beside ours where asked for, and masked tokens for them."""

import copy

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf
from tiny_multi import text_task

from d2v_plugin.models.data2vec_text import Data2VecTextModel
from d2v_plugin.models.data2vec_text_config import Data2VecTextConfig

TINY = {
    "_name": "data2vec_text",
    "head_layers": 2,
    "average_top_k_layers": 2,
    "layer_norm_target_layer": True,
    "loss_scale": 1,
    "loss_beta": 4,
    "ema_decay": 0.9,
    "ema_end_decay": 0.99,
    "ema_anneal_end_step": 30,
    "transformer": {
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layernorm_embedding": True,
        "activation_fn": "gelu",
        "no_scale_embedding": True,
        "max_source_positions": 40,
        "encoder": {
            "embed_dim": 24,
            "ffn_embed_dim": 48,
            "layers": 3,
            "attention_heads": 4,
            "learned_pos": True,
        },
    },
}
PAD, WORDS = 1, 20
MASK = len(Dictionary()) + WORDS - 1


def root_config(**overrides):
    """The part of a training configuration that the model reads; "__" stands for the dot in a key of ``model``."""
    parts = {"optimization": {"max_update": 100}, "task": {"tokens_per_sample": 40}, "model": copy.deepcopy(TINY)}
    root = OmegaConf.create(parts)
    for key, value in overrides.items():
        OmegaConf.update(root, "model." + key.replace("__", "."), value, force_add=True)
    return root


def build(root, task=None, model=Data2VecTextModel, config=Data2VecTextConfig):
    """The model of ``root_config``."""
    return model.build_model(merge_with_parent(config(), root.model), task or text_task(WORDS))


def tiny(task=None, **overrides):
    """Our model, ready to train."""
    model = build(root_config(**overrides), task)
    model.set_num_updates(0)
    return model


def batch(B=3, T=30, padded=False):
    """``(src_tokens, target_tokens)``, each (B, T) int64; a third of the text is masked, its first token never."""
    text = torch.randint(4, MASK, (B, T))
    if padded:
        lengths = torch.tensor([T, T - T // 5, T // 2][:B])
        text[torch.arange(T) >= lengths[:, None]] = PAD
    masked = torch.rand(B, T) < 0.35
    masked[:, 0], masked[:, 1] = False, True
    return text.masked_fill(masked & (text != PAD), MASK), text
