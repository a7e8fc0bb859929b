"""Tiny ``data2vec_multi`` models, their input and masks, for each modality; upstream's beside ours where asked for."""

import copy
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf

from d2v_plugin.models.data2vec_multi import Data2VecMultiModel
from d2v_plugin.models.data2vec_multi_config import Data2VecMultiConfig

MODALITIES = ("AUDIO", "IMAGE", "TEXT")
DECODER = {"decoder_dim": 32, "decoder_groups": 4, "decoder_kernel": 3, "decoder_layers": 2, "input_dropout": 0.0}
COMMON = {"prenet_depth": 1, "mask_noise_std": 0.0, "decoder": DECODER}
TINY = {
    "_name": "data2vec_multi",
    "depth": 3,
    "embed_dim": 48,
    "num_heads": 4,
    "mlp_ratio": 2,
    "average_top_k_layers": 2,
    "clone_batch": 2,
    "instance_norm_target_layer": True,
    "encoder_dropout": 0.0,
    "post_mlp_drop": 0.0,
    "attention_dropout": 0.0,
    "ema_decay": 0.9,
    "ema_end_decay": 0.99,
    "ema_anneal_end_step": 30,
    "modalities": {
        "audio": {
            **COMMON,
            "feature_encoder_spec": "[(16, 10, 5)] + [(16, 3, 2)] * 2 + [(16, 2, 2)]",
            "conv_pos_width": 9,
            "conv_pos_depth": 2,
            "conv_pos_groups": 4,
        },
        "image": {**COMMON, "input_size": 24, "patch_size": 4, "embed_dim": 48, "mask_length": 3},
        "text": {**COMMON, "max_source_positions": 40, "dropout": 0.0, "mask_length": 1},
    },
}


def text_task(words=20):
    """All that a TEXT encoder asks of its task."""
    dictionary = Dictionary()
    for n in range(words - 1):
        dictionary.add_symbol(f"w{n}")
    dictionary.add_symbol("<mask>")  # as fairseq's masked_lm does
    return SimpleNamespace(source_dictionary=dictionary)


def root_config(modality=None, every=None, **overrides):
    """The part of a training configuration that the model reads.

    Args:
        modality: "AUDIO" ...; None for a model of all three.
        every: settings for every modality.
        overrides: of ``model``, "__" for the dot in a key: ``modalities__image__mask_prob``.
    """
    model = copy.deepcopy(TINY)
    model["supported_modality"] = modality
    root = OmegaConf.create({"common": {"seed": 1}, "optimization": {"max_update": 100}, "model": model})
    for name in MODALITIES:
        for key, value in (every or {}).items():
            OmegaConf.update(root, f"model.modalities.{name.lower()}.{key}", value, force_add=True)
    for key, value in overrides.items():
        OmegaConf.update(root, "model." + key.replace("__", "."), value, force_add=True)
    return root


def build(root, task=None):
    """Our model of ``root_config``."""
    task = task or text_task()
    return Data2VecMultiModel.build_model(merge_with_parent(Data2VecMultiConfig(), root.model), task)


def tiny(modality, every=None, task=None, **overrides):
    """Our model of one modality, ready to train."""
    model = build(root_config(modality, every, **overrides), task)
    model.set_num_updates(0)
    return model


def batch(modality, B=3, padded=False):
    """``(source, padding_mask)`` of a modality."""
    if modality == "IMAGE":
        return torch.randn(B, 3, 24, 24), None
    T = 1600 if modality == "AUDIO" else 30
    lengths = [T, T - T // 5, T // 2][:B] if padded else [T] * B
    padding_mask = torch.arange(T) >= torch.tensor(lengths)[:, None]
    if modality == "AUDIO":
        source = torch.randn(B, T).masked_fill(padding_mask, 0)
    else:
        source = torch.randint(4, 24, (B, T)).masked_fill(padding_mask, 1)
    return source, padding_mask if padded else None


def frames(model, modality, source):
    """T: positions of the sequence."""
    with torch.no_grad():
        return model.modality_encoders[modality].local_features(source).shape[1]


def random_masks(rows, T, share=0.5):
    """(rows, T) bool with the same count in every row."""
    keys = torch.rand(rows, T)
    return keys.argsort(1).argsort(1) < int(T * share)
