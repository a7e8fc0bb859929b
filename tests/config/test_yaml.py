"""Every YAML file under ``examples``: what its header says, what it must not hold, and that it trains."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tiny_training import ROOT, compose_config, modality, register, scaled_down, train

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.data.text.glue import TASKS

EXAMPLES = ROOT / "examples"
# the group hardware holds no recipes, see test_hardware.py
FILES = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "hardware")
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s'"=:(\[,])(?:~/|/)[\w.]""", re.MULTILINE)
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))


def header(path: Path) -> str:
    """The comment lines the file begins with, without their marks."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


@pytest.fixture
def pretrained(pretrained_speech, pretrained_images, pretrained_text):
    """Gives the checkpoint that a fine-tuning recipe starts from; None for others."""

    def get(path: Path, raw: dict) -> Path | None:
        if raw["model"]["_name"] in ("wav2vec_ctc", "audio_classification"):
            return pretrained_speech(2 if path.stem.endswith("_v2") else 1, raw["task"]["normalize"])
        if raw["model"]["_name"] == "data2vec_image_classification":
            return pretrained_images("base_imagenet")
        if raw["model"]["_name"] == "mae_image_classification":
            return pretrained_images("mae_base_imagenet" if "_mae_" in path.stem else "base_imagenet_v2")
        if modality(raw) == "glue":
            return pretrained_text(1 if path.parent.name == "glue_v1" else 2)
        return None

    return get


def test_the_published_recipes_are_there():
    names = {path.stem for path in FILES}
    splits, versions = ("10m", "1h", "10h", "100h", "960h"), ("", "_v2")
    ctc = {f"ctc_{size}_{split}{v}" for size in ("base", "large") for split in splits for v in versions}
    for folder in ("glue", "glue_v1"):
        assert {path.stem for path in FILES if path.parent.name == folder} == set(TASKS)
    assert names >= ctc | {"base_librispeech", "large_librilight", "base_audioset", "audioset_classification"}
    assert names >= {"base_librispeech_v2", "large_librilight_v2", "mae_base_imagenet"}
    assert names >= {"base_imagenet", "large_imagenet"}
    assert names >= {f"{size}_imagenet_v2" for size in ("base", "large", "huge", "huge14")}
    assert names >= {f"finetune_{size}_imagenet_v2" for size in ("base", "large", "huge")}
    assert names >= {"finetune_base_imagenet", "finetune_large_imagenet", "finetune_mae_base_imagenet"}
    assert names >= {"base_books_wiki", "base_books_wiki_v2", "large_books_wiki_v2", "large_books_wiki_v2_pgrp_1m"}


@every_file
def test_header_says_how_on_what_and_what_to_expect(path):
    text = header(path)
    command = text.replace("\\\n", " ")
    launch = next(line for line in command.splitlines() if line.startswith("fairseq-hydra-train"))
    words = shlex.split(launch)
    assert words[words.index("--config-dir") + 1] == str(path.parent.relative_to(ROOT))
    assert words[words.index("--config-name") + 1] == path.stem
    for field in ("Hardware:", "Duration:", "Outcome:", "Source:"):
        assert f"\n{field} " in text, f"{path}: the header has no line that begins with {field}"


@every_file
def test_no_absolute_path_and_no_code(path):
    # "/path/to" is how a comment says "yours".
    text = path.read_text().replace("/path/to/", "")
    found = ABSOLUTE_PATH.search(text)
    assert found is None, f"{path}: {found.group().strip()}"
    for code in ("eval(", "${eval:", "${env:", "${oc.env:", "_target_:"):
        assert code not in text


@pytest.mark.parametrize("text", ["data: /home/me", "data: '/x'", "# see ~/data", "a=/b", "[/a, b]", "l: ~/x"])
def test_absolute_paths_are_recognised(text):
    assert ABSOLUTE_PATH.search(text)


@every_file
def test_locations_come_from_the_command_line(path):
    raw = yaml.safe_load(path.read_text())
    # an example that adds to the plugin names its own folder
    own = [str(path.parent.relative_to(ROOT))] if (path.parent / "__init__.py").exists() else []
    assert raw["common"]["user_dir"] in ["d2v_plugin", *own]
    assert raw["task"]["data"] == "???"
    if raw["model"]["_name"] == "wav2vec_ctc":
        assert raw["model"]["w2v_path"] == "???"
    if raw["model"]["_name"].endswith("_classification"):
        assert raw["model"].get("model_path", "???") == "???"


@every_file
def test_composes_with_outputs_in_one_place(path):
    cfg = compose_config(path)
    assert OmegaConf.is_missing(cfg.task, "data")
    # A run directory named after the clock would make the same command start afresh.
    assert not Path(cfg.checkpoint.save_dir).is_absolute()
    assert yaml.safe_load(path.read_text())["hydra"] == {
        "run": {"dir": "${checkpoint.save_dir}"},
        "job": {"chdir": False},
    }


def parts(raw):
    """``(registry, settings)`` of everything in a file that fairseq or this plugin has a dataclass for."""
    for group in ("task", "model", "criterion", "optimizer", "lr_scheduler"):
        yield group, raw[group]
    for group in raw["optimizer"].get("groups", {}).values():
        assert set(group) <= {"optimizer", "lr_scheduler", "lr_float"}
        yield "optimizer", group["optimizer"]
        yield "lr_scheduler", group["lr_scheduler"]


@every_file
def test_every_key_is_known(path):
    """fairseq takes some unknown keys without a word, so a misspelt one would silently mean the default."""
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models import MODEL_DATACLASS_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_DATACLASS_REGISTRY

    register(compose_config(path))
    raw = yaml.safe_load(path.read_text())
    tables = {name: registry["dataclass_registry"] for name, registry in REGISTRIES.items()}
    tables |= {"task": TASK_DATACLASS_REGISTRY, "model": MODEL_DATACLASS_REGISTRY}
    for group, settings in parts(raw):
        dataclass = tables[group][settings["_name"]]
        known = OmegaConf.structured(dataclass)
        try:
            OmegaConf.merge(known, {key: value for key, value in settings.items() if value != "???"})
        except OmegaConfBaseException as error:
            pytest.fail(f"{path}, {group}: {error}")
    for group in ("common", "checkpoint", "dataset", "distributed_training", "optimization"):
        OmegaConf.merge(OmegaConf.structured(FairseqConfig)[group], raw[group])


@every_file
def test_trains_two_steps(path, data, pretrained, tmp_path):
    raw = yaml.safe_load(path.read_text())
    train(scaled_down(path, data(modality(raw)), tmp_path, pretrained(path, raw)))

    state = read_checkpoint(tmp_path / "checkpoint_last.pt", keys=["model", "cfg", "optimizer_history"])
    assert state["optimizer_history"][-1]["num_updates"] == 2
    floats = [value for value in state["model"].values() if torch.is_tensor(value) and value.is_floating_point()]
    assert floats
    assert all(value.isfinite().all() for value in floats)
    assert state["cfg"]["criterion"]["_name"] == raw["criterion"]["_name"]
