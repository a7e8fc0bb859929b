"""Runs the YAML files of ``examples`` in this process, scaled down: small widths, short recordings, two updates."""

from pathlib import Path

from audio_corpus import Corpus
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

ROOT = Path(__file__).parents[1]
LABELS = ("A B | C |", "C A B |", "B A | A |", "A |")
DATA_SPLITS = ("train", "valid", "test", "dev_other")

ANY_RUN = {
    "common.cpu": True,
    "common.fp16": False,
    "common.log_interval": 1,
    "common.user_dir": str(ROOT / "d2v_plugin"),
    "distributed_training.distributed_world_size": 1,
    "dataset.num_workers": 0,
    "dataset.max_tokens": 24_000,
    "optimization.max_update": 2,
    "optimization.update_freq": [1],
}
SMALL_MODEL = {
    "model.encoder_layers": 2,
    "model.encoder_embed_dim": 32,
    "model.encoder_ffn_embed_dim": 64,
    "model.encoder_attention_heads": 4,
    "model.average_top_k_layers": 2,
    "model.conv_feature_layers": "[(16, 10, 5), (16, 8, 8), (16, 8, 8)]",
}


def write_data(folder: Path) -> Path:
    """Four recordings of about half a second with transcripts, as every split that a YAML file may name."""
    corpus = Corpus(folder)
    for n in range(len(LABELS)):
        corpus.add(f"{n}.wav", 8000 + 800 * n)
    for split in DATA_SPLITS:
        corpus.manifest(f"{split}.tsv")
        (folder / f"{split}.ltr").write_text("\n".join(LABELS) + "\n")
    (folder / "dict.ltr.txt").write_text("".join(f"{symbol} 1\n" for symbol in "|ABC"))
    return folder


def compose_config(path: Path) -> DictConfig:
    """The configuration in ``path`` as ``fairseq-hydra-train`` composes it, without the values the user gives."""
    from fairseq.dataclass.initialize import hydra_init

    hydra_init(path.stem)
    with initialize_config_dir(str(path.parent.resolve()), version_base="1.1"):
        return compose(path.stem)


def scaled_down(path: Path, data: Path, save_dir: Path, pretrained: Path | None = None, **more) -> DictConfig:
    """``compose_config`` with small sizes; ``more`` are further values, "__" for the dot in a key."""
    cfg = compose_config(path)
    values = {**ANY_RUN, "task.data": str(data), "checkpoint.save_dir": str(save_dir)}
    if cfg.model._name == "wav2vec_ctc":
        # Channel masks longer than the model is wide cannot be drawn.
        values |= {"model.mask_channel_length": 8}
        if pretrained is not None:
            values |= {"model.w2v_path": str(pretrained)}
    else:
        values |= {**SMALL_MODEL, "task.min_sample_size": 2000}
    if cfg.lr_scheduler._name == "tri_stage":
        # Three stages do not fit into two updates.
        values |= {"lr_scheduler.phase_ratio": [0.5, 0.0, 0.5]}
    elif "warmup_updates" in cfg.lr_scheduler:
        values |= {"lr_scheduler.warmup_updates": 1}
    values |= {key.replace("__", "."): value for key, value in more.items()}
    with open_dict(cfg):
        for key, value in values.items():
            group, name = key.split(".")
            cfg[group][name] = value
    return cfg


def train(cfg: DictConfig) -> None:
    """What ``fairseq-hydra-train`` does after composing, in this process."""
    from fairseq import checkpoint_utils
    from fairseq.logging import metrics
    from fairseq_cli.hydra_train import _hydra_main

    from d2v_plugin.eval.load import register_plugin

    register_plugin()
    # fairseq keeps both for the life of a process.
    metrics.reset()
    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    _hydra_main(cfg)
