"""The worked fourth modality: it trains like the others, and its positions see what they say."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf

from d2v_plugin.errors import UserError
from d2v_plugin.modalities import encoder_class
from d2v_plugin.modalities.audio import AudioEncoder
from d2v_plugin.modalities.registry import register_modality
from d2v_plugin.models.data2vec_multi import Data2VecMultiModel
from d2v_plugin.models.data2vec_multi_config import Data2VecMultiConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
log_mel = importlib.import_module("spectrogram.log_mel")

SETTINGS = {"bands": 40, "conv_pos_width": 5, "conv_pos_groups": 4, "prenet_depth": 1, "use_alibi_encoder": True}
DECODER = {"decoder_dim": 32, "decoder_groups": 4, "decoder_layers": 2}


def tiny():
    model = {"depth": 2, "embed_dim": 32, "num_heads": 4, "average_top_k_layers": 2, "clone_batch": 3}
    model |= {"instance_norm_target_layer": True, "ema_encoder_only": False, "supported_modality": "SPECTROGRAM"}
    model["modalities"] = {"spectrogram": {**SETTINGS, "decoder": DECODER}}
    root = OmegaConf.create({"common": {"seed": 1}, "optimization": {"max_update": 10}, "model": model})
    return Data2VecMultiModel.build_model(merge_with_parent(Data2VecMultiConfig(), root.model))


def test_a_step_with_padding():
    model = tiny().train()
    model.set_num_updates(1)
    source = torch.randn(3, 16000)
    lengths = [16000, 12000, 8000]
    padding_mask = torch.arange(16000) >= torch.tensor(lengths)[:, None]
    out = model(source, id=torch.arange(3), padding_mask=padding_mask, source_lengths=lengths)
    out["losses"]["SPECTROGRAM_regression"].backward()
    assert out["sample_size"] > 0 and out["target_var"] > 0
    names = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.startswith("modality_encoders.SPECTROGRAM.project_features") for name in names)


def test_half_precision():
    model = tiny().to(torch.bfloat16)
    loss = model(torch.randn(2, 8000).to(torch.bfloat16))["losses"]["SPECTROGRAM_regression"]
    loss.backward()
    assert loss.isfinite()


def test_frames_are_those_of_the_specification():
    encoder = tiny().modality_encoders["SPECTROGRAM"]
    for samples in (560, 561, 879, 880, 4321):
        T = encoder.conv_spec.frames(samples)
        assert encoder.local_features(torch.randn(1, samples)).shape == (1, T, 32)
    assert encoder.conv_spec.receptive_field == 560  # 25 ms and another 10


def test_a_tone_lights_up_its_band():
    mel = log_mel.LogMel(16000, 40, 1)
    time = torch.arange(16000) / 16000
    peaks = [int(mel(torch.sin(2 * torch.pi * hz * time)[None])[0].mean(0).argmax()) for hz in (200, 800, 3000)]
    centres = [int((mel.filters[:, round(hz / 40)]).argmax()) for hz in (200, 800, 3000)]
    assert peaks == centres and peaks == sorted(set(peaks))
    with pytest.raises(UserError, match="too many"):
        log_mel.LogMel(16000, 200, 1)


def test_names_are_taken_once():
    assert encoder_class("audio") is AudioEncoder
    with pytest.raises(ValueError, match="modality AUDIO is taken by AudioEncoder"):
        register_modality("AUDIO")(type("Other", (AudioEncoder,), {}))
