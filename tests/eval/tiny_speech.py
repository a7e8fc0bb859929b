"""Tiny checkpoints as fairseq writes them, and a folder of recordings with a manifest and labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

SAMPLE_RATE = 8000
LETTERS = "| a b c d e".split()
TEXTS = ("bad cab", "dead bee", "abe", "add ace", "decade", "a bead faded".replace("f", "c"), "cede", "bad bed")
CONVOLUTIONS = "[(16, 10, 5)] + [(16, 4, 4)] * 2 + [(16, 2, 2)]"


@dataclass(frozen=True)
class Corpus:
    """``manifest``: test.tsv of eight recordings between 0.4 and 1.5 s; test.ltr and dict.ltr.txt lie beside it."""

    folder: Path
    manifest: Path


def write_corpus(folder: Path, seed: int = 0) -> Corpus:
    """Gliding tones with some noise, one for each text."""
    audio = folder / "wav"
    audio.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    rows = [str(audio)]
    for n in range(len(TEXTS)):
        frames = int(SAMPLE_RATE * (0.4 + 1.1 * generator.random()))
        time = np.arange(frames) / SAMPLE_RATE
        pitch = 200 + 100 * n + 600 * generator.random() * time
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE) + 0.02 * generator.standard_normal(frames)
        soundfile.write(audio / f"u{n}.wav", wave, SAMPLE_RATE)
        rows.append(f"u{n}.wav\t{frames}")
    (folder / "test.tsv").write_text("\n".join(rows) + "\n")
    (folder / "test.ltr").write_text("".join(" ".join(text.replace(" ", "|")) + " |\n" for text in TEXTS))
    (folder / "dict.ltr.txt").write_text("".join(f"{letter} 1\n" for letter in LETTERS))
    return Corpus(folder, folder / "test.tsv")


def pretraining_cfg(mode: str, norm_first: bool) -> dict:
    from omegaconf import OmegaConf

    from d2v_plugin.register import register_plugin

    register_plugin()
    from d2v_plugin.models.data2vec_audio import Data2VecAudioConfig

    model = OmegaConf.to_container(OmegaConf.structured(Data2VecAudioConfig), resolve=False, enum_to_str=True)
    model |= {
        "_name": "data2vec_audio",
        "conv_feature_layers": CONVOLUTIONS,
        "extractor_mode": mode,
        "encoder_layers": 3,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 64,
        "encoder_attention_heads": 2,
        "average_top_k_layers": 2,
        "conv_pos": 8,
        "conv_pos_groups": 4,
        "layer_norm_first": norm_first,
        "ema_anneal_end_step": 10,
        "max_update": 10,
        "required_seq_len_multiple": 1,
    }
    task = {
        "_name": "d2v_audio_pretraining",
        "data": "/not/on/this/machine",
        "sample_rate": SAMPLE_RATE,
        "normalize": True,
    }
    return {
        "model": {k: v for k, v in model.items() if not str(v).startswith("${")},
        "task": task,
        "criterion": None,
        "lr_scheduler": None,
    }


def ctc_cfg(pretraining: dict) -> dict:
    from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig
    from omegaconf import OmegaConf

    model = OmegaConf.to_container(OmegaConf.structured(Wav2Vec2CtcConfig), resolve=False, enum_to_str=True)
    model |= {
        "_name": "wav2vec_ctc",
        "w2v_path": "/not/on/this/machine/pretrained.pt",
        "normalize": True,
        "data": "/not/on/this/machine",
        "ddp_backend": "legacy_ddp",
        "w2v_args": pretraining,
    }
    return {
        "model": model,
        "task": {
            "_name": "d2v_audio_finetuning",
            "data": "/not/on/this/machine",
            "labels": "ltr",
            "sample_rate": SAMPLE_RATE,
            "normalize": True,
        },
    }


def write_pretrained(path: Path, mode: str = "layer_norm", norm_first: bool = False) -> Path:
    """A ``data2vec_audio`` checkpoint with its teacher."""
    from fairseq import models
    from omegaconf import OmegaConf

    cfg = pretraining_cfg(mode, norm_first)
    model = models.build_model(OmegaConf.create(cfg["model"]), None, from_checkpoint=True)
    model.set_num_updates(0)
    state = model.state_dict()
    assert "_ema" in state
    torch.save({"cfg": cfg, "model": state, "args": None, "task_state": {}, "extra_state": {}}, path)
    return path


def write_wav2vec2(path: Path) -> Path:
    """A checkpoint of fairseq's own wav2vec 2.0, whose encoder works time-major and pads to an even length."""
    from fairseq import models
    from fairseq.models.wav2vec import Wav2Vec2Config
    from omegaconf import OmegaConf

    cfg = OmegaConf.to_container(OmegaConf.structured(Wav2Vec2Config), resolve=False, enum_to_str=True)
    cfg |= {"_name": "wav2vec2", "conv_feature_layers": CONVOLUTIONS, "extractor_mode": "layer_norm"}
    cfg |= {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 2}
    cfg |= {"conv_pos": 8, "conv_pos_groups": 4, "final_dim": 16, "latent_dim": 16}
    model = models.build_model(OmegaConf.create(cfg), None, from_checkpoint=True)
    task = {"_name": "audio_pretraining", "data": "/not/on/this/machine", "sample_rate": SAMPLE_RATE, "normalize": True}
    torch.save({"cfg": {"model": cfg, "task": task}, "model": model.state_dict()}, path)
    return path


def write_ctc(path: Path, dictionary: Path, mode: str = "layer_norm", store_dictionary: bool = True) -> Path:
    """A ``wav2vec_ctc`` checkpoint; its weights are random, so what it decodes is noise but not nothing."""
    from fairseq import models
    from fairseq.data import Dictionary
    from omegaconf import OmegaConf

    class Task:
        target_dictionary = Dictionary.load(str(dictionary))

    cfg = ctc_cfg(pretraining_cfg(mode, norm_first=False))
    model = models.build_model(OmegaConf.create(cfg["model"]), Task, from_checkpoint=True)
    with torch.no_grad():
        # untrained outputs hardly depend on the input: spread them, so that different frames give different letters
        model.w2v_encoder.proj.weight.mul_(8)
    task_state = {"target_dictionary": Task.target_dictionary} if store_dictionary else {}
    torch.save({"cfg": cfg, "model": model.state_dict(), "args": None, "task_state": task_state}, path)
    return path


def write_multi(path: Path, modality: str = "AUDIO") -> Path:
    """A ``data2vec_multi`` checkpoint of one modality with its teacher, prenet and extra token."""
    from omegaconf import OmegaConf
    from tiny_multi import root_config, tiny

    settings = {"num_extra_tokens": 1, "use_alibi_encoder": True}
    model = OmegaConf.to_container(root_config(modality, settings), resolve=True)
    task = {"_name": "d2v_audio_pretraining", "data": "/not/on/this/machine", "sample_rate": SAMPLE_RATE}
    state = tiny(modality, settings).state_dict()
    assert "_ema" in state
    torch.save({"cfg": {**model, "task": task | {"normalize": True}}, "model": state}, path)
    return path
