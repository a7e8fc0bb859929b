"""Files of the config group ``hardware``: they compose, keep the recipe's batch, and say how they were made."""

import re

import pytest
import yaml
from tiny_training import ROOT, compose_config

from d2v_plugin.planning.recipe import read

FILES = sorted((ROOT / "examples").glob("*/hardware/*.yaml"))
NAME = re.compile(r"(?P<recipe>\w+)_(?P<gpus>\d+)x(?P<memory>\d+)gb")
FIELDS = {
    "distributed_training": {"distributed_world_size"},
    "optimization": {"update_freq", "lr"},
    "dataset": {"max_tokens", "batch_size"},
}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_the_three_machines_are_there_for_the_main_recipes():
    found = {path.stem for path in FILES}
    base = ("base_librispeech", "base_librispeech_v2", "base_imagenet", "base_imagenet_v2", "base_books_wiki_v2")
    assert found >= {f"{name}_{machine}" for name in base for machine in ("1x24gb", "1x80gb", "8x80gb")}


def values(raw):
    """(GPUs, passes, units in a pass, learning rate) of a file's groups."""
    dataset, optimization = raw["dataset"], raw["optimization"]
    micro = dataset.get("batch_size") or dataset["max_tokens"]
    return (
        raw["distributed_training"]["distributed_world_size"],
        optimization.get("update_freq", [1])[0],
        micro,
        optimization["lr"][0],
    )


@every_file
def test_keeps_the_batch_of_its_recipe(path):
    name = NAME.fullmatch(path.stem)
    recipe = yaml.safe_load((path.parents[1] / f"{name['recipe']}.yaml").read_text())
    gpus, passes, micro, lr = values(recipe)
    changed = yaml.safe_load(path.read_text()) or {}
    here = values({group: {**recipe[group], **changed.get(group, {})} for group in FIELDS})
    assert here[0] == int(name["gpus"])
    assert here[0] * here[1] * here[2] == pytest.approx(gpus * passes * micro, rel=1e-3)
    assert here[3] == lr
    # a crop has to fit
    assert here[2] >= recipe["task"].get("max_sample_size", 1)


@pytest.mark.parametrize("name", ["speech/base_librispeech_v2", "vision/base_imagenet", "text/base_books_wiki_v2"])
def test_composes(name):
    path = ROOT / "examples" / f"{name}.yaml"
    here, there = read(path, [f"+hardware={path.stem}_1x24gb"]), read(path)
    assert here.gpus == 1 and here.batch == there.batch and here.lr == there.lr and here.updates == there.updates
    assert here.micro >= here.field_row


@every_file
def test_changes_the_batch_alone_and_says_how(path):
    name, text = NAME.fullmatch(path.stem), path.read_text()
    assert text.startswith("# @package _global_\n")
    command = f"d2v plan --config {name['recipe']} --gpus {name['gpus']} --memory {name['memory']} --write"
    assert f"# Written by: {command}\n" in text
    for group, values in (yaml.safe_load(text) or {}).items():
        assert set(values) <= FIELDS[group]


def test_the_rest_of_the_recipe_stays_as_it_is():
    plain = compose_config(ROOT / "examples" / "speech" / "base_librispeech.yaml")
    recipe = read(ROOT / "examples" / "speech" / "base_librispeech.yaml", ["+hardware=base_librispeech_1x24gb"])
    assert recipe.cfg.model.encoder_layers == 12 and recipe.cfg.optimization.max_update == plain.optimization.max_update
    assert recipe.cfg.checkpoint.save_dir == plain.checkpoint.save_dir
