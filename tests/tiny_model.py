"""A data2vec_audio small enough to step in a millisecond, and a padded batch for it."""

import torch

from d2v_plugin.models.data2vec_audio import Data2VecAudioConfig, Data2VecAudioModel

TINY = {
    "encoder_layers": 3,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] * 3",
    "conv_pos": 9,
    "conv_pos_groups": 4,
    "pos_conv_depth": 2,
    "average_top_k_layers": 2,
    "instance_norm_target_layer": True,
    "extractor_mode": "layer_norm",
    "ema_anneal_end_step": 10,
    "max_update": 10,
}


def make(**overrides):
    model = Data2VecAudioModel(Data2VecAudioConfig(**{**TINY, **overrides}))
    model.set_num_updates(0)
    return model


def padded_batch():
    source, padding_mask = torch.randn(3, 4000), torch.zeros(3, 4000, dtype=torch.bool)
    padding_mask[1, 3000:] = padding_mask[2, 1500:] = True
    return source.masked_fill(padding_mask, 0), padding_mask, [4000, 3000, 1500]
