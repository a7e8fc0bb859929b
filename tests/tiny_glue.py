"""GLUE as small as a run takes: the eight tasks prepared, and tiny pre-trained checkpoints for them."""

from pathlib import Path
from types import SimpleNamespace

import torch
import upstream
from fairseq.data import Dictionary
from fairseq.dataclass.utils import merge_with_parent
from glue_corpus import sentences, write_glue
from omegaconf import OmegaConf
from tiny_multi import root_config
from tiny_training import ROOT, scaled_down, train

from d2v_plugin.data.text.build import BuildOptions, build
from d2v_plugin.data.text.glue import TASKS
from d2v_plugin.data.text.glue_prepare import prepare_tasks
from d2v_plugin.data.text.labelled import TextEncoder

PIECES, POSITIONS = 200, 64
V2, V1 = ROOT / "examples" / "text" / "base_books_wiki_v2.yaml", ROOT / "examples" / "text" / "base_books_wiki.yaml"
# what fine-tuning must be told of a tiny model of 1.0: fairseq builds it from the run's own configuration
ENCODER = {"embed_dim": 32, "ffn_embed_dim": 64, "layers": 2, "attention_heads": 4}
TRANSFORMER_V1 = {
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "layernorm_embedding": True,
    "activation_fn": "gelu",
    "no_scale_embedding": True,
    "max_source_positions": POSITIONS,
    "encoder": {**ENCODER, "normalize_before": False, "learned_pos": True, "layerdrop": 0.0},
}


def quiet(line: str) -> None:
    """Nobody looks."""


def write_all(folder: Path) -> Path:
    """``folder/glue``: official files; ``folder/text``: what to pre-train on; ``folder/bin``: the tasks prepared."""
    write_glue(folder / "glue")
    (folder / "text.txt").write_text("\n".join(sentences()) + "\n", encoding="utf-8")
    named = [str(folder / "text.txt")]
    build(BuildOptions(named, str(folder / "text"), valid=named, vocab_size=PIECES), tell=quiet)
    encoder = TextEncoder.of_folder(folder / "text")
    prepare_tasks(folder / "glue", folder / "bin", list(TASKS.values()), encoder, max_positions=POSITIONS, tell=quiet)
    return folder


def pretrain(text: Path, save_dir: Path, path: Path = V2, **more) -> Path:
    """Two updates of ours on ``text``; the checkpoint."""
    sizes = {"task__tokens_per_sample": POSITIONS}
    if path == V2:
        sizes["model__modalities__text__max_source_positions"] = POSITIONS
    train(scaled_down(path, text, save_dir, **sizes, **more))
    return save_dir / "checkpoint_last.pt"


def dictionary_of(text: Path) -> Dictionary:
    """As fairseq's text tasks have it."""
    dictionary = Dictionary.load(str(text / "dict.txt"))
    dictionary.add_symbol("<mask>")
    return dictionary


def upstream_v2(text: Path, path: Path) -> torch.nn.Module:
    """Upstream's model of 2.0, and its checkpoint as upstream's trainer writes it."""
    module = upstream.load_v2("models.data2vec2")
    root = root_config("TEXT", {"prenet_depth": 0}, modalities__text__max_source_positions=POSITIONS)
    with upstream.current_stack():
        cfg = merge_with_parent(module.Data2VecMultiConfig(), root.model)
        model = module.Data2VecMultiModel.build_model(cfg, SimpleNamespace(source_dictionary=dictionary_of(text)))
    root.model = cfg
    settings = OmegaConf.to_container(root, resolve=True, enum_to_str=True)
    task = {"_name": "masked_lm", "data": "/not/on/this/machine", "d2v2_multi": True, "skip_masking": True}
    write_state(path, {**settings, "task": task, "criterion": {"_name": "model"}}, model)
    return model


def write_state(path: Path, cfg: dict, model: torch.nn.Module) -> None:
    """What upstream's trainer saves beside the weights."""
    history = {
        "num_updates": 7,
        "criterion_name": "ModelCriterion",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
    }
    state = {
        "cfg": cfg,
        "args": None,
        "model": model.state_dict(),
        "optimizer_history": [history],
        "extra_state": {"train_iterator": {"epoch": 2}, "val_loss": None},
        "task_state": {},
    }
    torch.save(state, path)


def small_run(path: Path, data: Path, save_dir: Path, **more):
    """A GLUE configuration with a few small batches; ``more`` as for ``scaled_down``."""
    settings = {"task__max_positions": POSITIONS, "dataset__batch_size": 8, "optimization__max_update": 2, **more}
    return scaled_down(path, data, save_dir, **settings)
