"""Runs the YAML files of ``examples`` in this process, scaled down: small widths, short samples, two updates."""

import copy
import functools
from pathlib import Path
from types import SimpleNamespace

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict
from tiny_data import write_data

__all__ = ["ROOT", "compose_config", "modality", "register", "resolved", "scaled_down", "train", "write_data"]

ROOT = Path(__file__).parents[1]

ANY_RUN = {
    "common.cpu": True,
    "common.fp16": False,
    "common.log_interval": 1,
    "common.user_dir": str(ROOT / "d2v_plugin"),
    "distributed_training.distributed_world_size": 1,
    "dataset.num_workers": 0,
    "optimization.max_update": 2,
    "optimization.update_freq": [1],
}
DATA = {
    "speech": {"dataset.max_tokens": 24_000},
    "vision": {"dataset.batch_size": 4, "task.input_size": 48},
    "text": {"dataset.batch_size": 4, "task.tokens_per_sample": 32},
    "glue": {"dataset.batch_size": 8, "task.max_positions": 64},
}
# Where runs may write beside checkpoint.save_dir. Upstream's files name a folder where the test was started and one on
# a disk of its cluster, and fairseq's default is one that all runs share.
WRITTEN = {"common.tensorboard_logdir": "tb", "task.local_cache_path": "cache", "common.plasma_path": "plasma"}
IMAGE_CLASSIFIERS = ("mae_image_classification", "data2vec_image_classification")
CONVOLUTIONS = "[(16, 10, 5), (16, 8, 8), (16, 8, 8)]"

SMALL_AUDIO = {
    "model.encoder_layers": 2,
    "model.encoder_embed_dim": 32,
    "model.encoder_ffn_embed_dim": 64,
    "model.encoder_attention_heads": 4,
    "model.average_top_k_layers": 2,
    "model.conv_feature_layers": CONVOLUTIONS,
}
# 64 positions: fine-tuning goes on with them
SMALL_TEXT_V1 = {
    "model.transformer.max_source_positions": 64,
    "model.transformer.encoder.embed_dim": 32,
    "model.transformer.encoder.ffn_embed_dim": 64,
    "model.transformer.encoder.layers": 2,
    "model.transformer.encoder.attention_heads": 4,
}
SMALL_ROBERTA = {
    "model.encoder_embed_dim": 32,
    "model.encoder_ffn_embed_dim": 64,
    "model.encoder_layers": 2,
    "model.encoder_attention_heads": 4,
}
SMALL_MULTI = {
    "model.depth": 2,
    "model.embed_dim": 32,
    "model.num_heads": 4,
    "model.average_top_k_layers": 2,
    "model.clone_batch": 2,
}
SMALL_MODALITY = {
    "audio": {"feature_encoder_spec": CONVOLUTIONS, "conv_pos_width": 15, "conv_pos_groups": 4},
    "image": {"input_size": 48, "patch_size": 8, "embed_dim": 32},
    "text": {"max_source_positions": 32},
    "spectrogram": {"bands": 20, "conv_pos_width": 5, "conv_pos_groups": 4},
}
SMALL_MAE = {
    "model.input_size": 48,
    "model.patch_size": 8,
    "model.embed_dim": 32,
    "model.depth": 2,
    "model.num_heads": 4,
    "model.decoder_embed_dim": 32,
    "model.decoder_depth": 1,
    "model.decoder_num_heads": 4,
}
SMALL_VISION = {
    "model.image_size": 48,
    "model.patch_size": 8,
    "model.embed_dim": 32,
    "model.depth": 2,
    "model.num_heads": 4,
    "model.average_top_k_layers": 2,
    "model.num_mask_patches": 20,
    "model.min_mask_patches_per_block": 3,
}


def compose_config(path: Path) -> DictConfig:
    """The configuration in ``path`` as ``fairseq-hydra-train`` composes it, without the values the user gives."""
    return copy.deepcopy(_composed(path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=512)
def _composed(path: Path, _written: int) -> DictConfig:
    """Hydra takes a second for each; files are composed by several tests."""
    from fairseq.dataclass.initialize import hydra_init

    hydra_init(path.stem)
    # Some of upstream's files hold settings of a cluster, which only its launcher knows.
    ConfigStore.instance().store(group="hydra/launcher", name="cluster", node={})
    on_cluster = OmegaConf.select(OmegaConf.load(path), "hydra.launcher") is not None
    with initialize_config_dir(str(path.parent.resolve()), version_base="1.1"):
        return compose(path.stem, overrides=["hydra/launcher=cluster"] if on_cluster else [])


def modality(cfg) -> str:
    """Which of the data that ``write_data`` knows the task of a configuration reads."""
    name = cfg["task"]["_name"]
    if "sentence_prediction" in name:
        return "glue"
    return "vision" if "image" in name else "text" if "masked_lm" in name else "speech"


def _small_model(model: DictConfig) -> dict:
    """Values that make a pre-training model small, whichever it is."""
    if model._name == "mae":
        return SMALL_MAE
    if model._name == "data2vec_vision":
        return SMALL_VISION
    if model._name == "data2vec_text":
        return SMALL_TEXT_V1 | {"model.average_top_k_layers": 2}
    if model._name != "data2vec_multi":
        return SMALL_AUDIO
    values = dict(SMALL_MULTI)
    for name, encoder in model.modalities.items():
        own = SMALL_MODALITY[name] | {"decoder.decoder_dim": 32, "decoder.decoder_layers": 2}
        own["prenet_depth"] = min(encoder.get("prenet_depth", 0), 1)
        own["decoder.decoder_groups"] = min(encoder.decoder.decoder_groups, 4)
        values |= {f"model.modalities.{name}.{key}": value for key, value in own.items()}
    return values


def _short_schedule(cfg: DictConfig) -> dict:
    """Values that fit warm-up and decay into two updates, in each group of a composite optimiser, too."""
    if "groups" in cfg.optimizer:
        return {f"optimizer.groups.{name}.lr_scheduler.warmup_updates": 1 for name in cfg.optimizer.groups}
    if cfg.lr_scheduler._name == "tri_stage":
        return {"lr_scheduler.phase_ratio": [0.5, 0.0, 0.5]}
    return {"lr_scheduler.warmup_updates": 1} if "warmup_updates" in cfg.lr_scheduler else {}


def _small_glue(path: Path, data: Path, cfg: DictConfig, pretrained: Path | None) -> dict:
    """Values for one of GLUE's tasks, which are folders below ``data``, from a tiny checkpoint of pre-training."""
    values = {"task.data": str(data / "bin" / path.stem)}
    if path.stem == "finetune_demo":  # which has data of its own
        values = {"task.data": str(data / "bin" / "rte"), "task.num_classes": 2, "dataset.valid_subset": "valid"}
    if cfg.model._name == "data2vec_text_classification":
        return values | {"model.model_path": str(pretrained)}
    if cfg.model._name == "roberta":
        # upstream's files; "???" in a file is the default once it is merged with it
        return values | SMALL_ROBERTA | {"checkpoint.restore_file": str(pretrained)}
    return values | SMALL_TEXT_V1 | {"checkpoint.finetune_from_model": str(pretrained)}


def scaled_down(path: Path, data: Path, save_dir: Path, pretrained: Path | None = None, **more) -> DictConfig:
    """``compose_config`` with small sizes; ``more`` are further values, "__" for the dot in a key."""
    cfg = compose_config(path)
    values = {**ANY_RUN, **DATA[modality(cfg)], "task.data": str(data), "checkpoint.save_dir": str(save_dir)}
    if own_folder(cfg) is not None:
        values["common.user_dir"] = str(own_folder(cfg))
    for key, name in WRITTEN.items():
        if OmegaConf.select(cfg, key):
            values[key] = str(save_dir / name)
    if modality(cfg) == "glue":
        values |= _small_glue(path, data, cfg, pretrained)
    elif cfg.model._name == "wav2vec_ctc":
        # Channel masks longer than the model is wide cannot be drawn.
        values |= {"model.mask_channel_length": 8}
        if pretrained is not None:
            values |= {"model.w2v_path": str(pretrained)}
    elif cfg.model._name == "audio_classification":
        values |= {"model.mask_channel_length": 8, "task.min_sample_size": 2000}
        if pretrained is not None:
            values |= {"model.model_path": str(pretrained)}
    elif cfg.model._name in IMAGE_CLASSIFIERS:
        # the two classes that write_data writes
        values |= {"dataset.valid_subset": "valid", "model.num_classes": 2}
        if pretrained is not None:
            values |= {"model.model_path": str(pretrained)}
    else:
        values |= _small_model(cfg.model)
        if modality(cfg) == "speech":
            values |= {"task.min_sample_size": 2000}
    values |= _short_schedule(cfg)
    values |= {key.replace("__", "."): value for key, value in more.items()}
    with open_dict(cfg):
        for key, value in values.items():
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def own_folder(cfg: DictConfig) -> Path | None:
    """The user directory of an example that adds to the plugin; its commands run in the repository's folder."""
    # not resolved: upstream's files refer to the environment in a way that OmegaConf no longer knows
    folder = ROOT / str(OmegaConf.to_container(cfg.common).get("user_dir"))
    return folder if folder.is_dir() and folder.parent.name == "examples" else None


def register(cfg: DictConfig) -> None:
    """Register the plugin, and what a user directory of its own adds to it."""
    from fairseq.utils import import_user_module

    from d2v_plugin.register import register_plugin

    register_plugin()
    if own_folder(cfg) is not None:
        import_user_module(SimpleNamespace(user_dir=str(own_folder(cfg))))


def resolved(cfg: DictConfig) -> DictConfig:
    """``cfg`` with the defaults of its dataclasses and without references, as fairseq hands it to task and model."""
    from fairseq.dataclass.initialize import add_defaults

    register(cfg)
    add_defaults(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


def train(cfg: DictConfig) -> None:
    """What ``fairseq-hydra-train`` does after composing, in this process."""
    from fairseq import checkpoint_utils
    from fairseq.logging import metrics
    from fairseq.optim.composite import FairseqCompositeOptimizer
    from fairseq_cli.hydra_train import _hydra_main

    register(cfg)
    # fairseq keeps these for the life of a process.
    metrics.reset()
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    FairseqCompositeOptimizer.optimizers, FairseqCompositeOptimizer.lr_schedulers = {}, {}
    _hydra_main(cfg)
