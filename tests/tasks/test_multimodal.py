"""Several modalities in one training: whose turn it is, what a batch holds, and a few updates of a tiny model."""

import argparse
import ast
import dataclasses
import json
import logging
from pathlib import Path

import fairseq
import pytest
import torch
from fairseq import tasks
from fairseq.criterions.model_criterion import ModelCriterion
from fairseq.logging import metrics
from omegaconf import OmegaConf
from tiny_data import write_data
from tiny_multi import build, root_config
from tiny_training import compose_config, resolved, train

import d2v_plugin.tasks.multimodal_pretraining  # noqa: F401
from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.data.mixture import ModalityBatches
from d2v_plugin.errors import UserError

NAME = "multimodal_pretraining"
UPSTREAM = Path(fairseq.__file__).parent / "examples/data2vec/tasks/multimodal.py"
MASKS = {
    "patch_size": 4,
    "mask_prob": 0.6,
    "mask_prob_adjust": 0.0,
    "mask_length": 2,
    "inverse_mask": True,
    "mask_dropout": 0.0,
    "clone_batch": 2,
}
TEXT = {"d2v2_multi": True, "skip_masking": True, "tokens_per_sample": 32, "sample_break_mode": "none"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp(name) for name in ("speech", "vision", "text")}
    return {name: str(write_data(folder, name)) for name, folder in made.items()}


def fields_of(folders, modalities=("audio", "image", "text")):
    every = {
        "audio": {"_name": "d2v_audio_pretraining", "data": folders["speech"], "max_sample_size": 8000},
        "image": {"_name": "mae_image_pretraining", "data": folders["vision"], "input_size": 24, "key": "source"},
        "text": {"_name": "d2v_masked_lm", "data": folders["text"], **TEXT},
    }
    return {name: every[name] for name in modalities}


def task_of(fields, update_freq=1, **model):
    root = root_config(**model)
    OmegaConf.update(root, "dataset", {"max_tokens": None, "batch_size": 2, "train_subset": "train"})
    OmegaConf.update(root, "optimization.update_freq", [update_freq])
    OmegaConf.update(root, "common", {"seed": 1, "tpu": False})
    OmegaConf.update(root, "task", {"_name": NAME, **fields})
    return tasks.setup_task(root.task), root


def modes(batches):
    return [batch["net_input"]["mode"] for batch in batches]


def iterator_of(task, split="train", **options):
    task.load_dataset(split)
    options = {"max_sentences": 2, "seed": 1, **options}
    return task.get_batch_iterator(task.dataset(split), **options)


def test_upstream_fields_keep_their_defaults():
    ours = {
        field.name: field.default
        for field in dataclasses.fields(d2v_plugin.tasks.multimodal_pretraining.MultimodalPretrainingConfig)
    }
    tree = ast.parse(UPSTREAM.read_text())
    (body,) = [n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "MultimodalPretrainingConfig"]
    theirs = {node.target.id: ast.unparse(node.value) for node in body if isinstance(node, ast.AnnAssign)}
    assert len(theirs) == 10
    for name, text in theirs.items():
        expected = "${" + ast.literal_eval(text[3:-1]) + "}" if text.startswith("II(") else ast.literal_eval(text)
        assert ours[name] == expected, name


def test_every_batch_is_of_one_modality_and_says_so(folders):
    task, _ = task_of(fields_of(folders))
    assert task.supported_modalities == ["TEXT", "AUDIO", "IMAGE"]
    assert all(type(name) is str for name in task.supported_modalities)
    epochs = []
    for epoch in (1, 2):
        iterator = iterator_of(task, epoch=epoch)
        batches = list(iterator.next_epoch_itr())
        assert len(batches) == len(iterator)
        assert {"AUDIO", "IMAGE", "TEXT"} == set(modes(batches))
        assert modes(batches).count("AUDIO") == 2 and modes(batches).count("IMAGE") == 4
        epochs.append(batches)
    kinds = {"AUDIO": torch.float32, "IMAGE": torch.uint8, "TEXT": torch.int64}
    for batch in epochs[0]:
        assert batch["net_input"]["source"].dtype == kinds[batch["net_input"]["mode"]]
        assert type(batch["net_input"]["mode"]) is str
    assert modes(epochs[0]) != modes(epochs[1])
    # images are batched anew in every epoch
    composed = [{tuple(sorted(b["ids"])) for b in batches if b["net_input"]["mode"] == "IMAGE"} for batches in epochs]
    assert composed[0] != composed[1]
    again = list(iterator_of(task_of(fields_of(folders))[0]).next_epoch_itr())
    assert [batch["id"].tolist() for batch in again] == [batch["id"].tolist() for batch in epochs[0]]


def test_ranks_and_micro_batches_of_an_update_see_one_modality(folders):
    task, _ = task_of({**fields_of(folders), "audio_batch_size": 1}, update_freq=2)
    seen = [modes(iterator_of(task, num_shards=2, shard_id=shard).next_epoch_itr()) for shard in (0, 1)]
    assert seen[0] == seen[1] and len(seen[0]) % 2 == 0
    assert all(first == second for first, second in zip(seen[0][::2], seen[0][1::2], strict=True))
    assert set(seen[0]) == {"AUDIO", "IMAGE", "TEXT"}
    # two batches of recordings do not fill an update of two ranks and two micro-batches
    with pytest.raises(UserError, match="AUDIO has 2 batches, and an update takes 4 of one modality"):
        iterator_of(task_of(fields_of(folders), update_freq=2)[0], num_shards=2)


def test_ratios_and_limits(folders):
    fields = {**fields_of(folders, ("audio", "image")), "image_ratio": 2.5, "audio_ratio": 0.5, "image_batch_size": 3}
    counts = modes(iterator_of(task_of(fields)[0]).next_epoch_itr())
    assert counts.count("AUDIO") == 1 and counts.count("IMAGE") == 3 + 3 + 1
    # validation sees everything once, in order
    batches = list(iterator_of(task_of(fields)[0], "valid").next_epoch_itr(shuffle=False))
    assert modes(batches) == ["AUDIO", "AUDIO", "IMAGE", "IMAGE", "IMAGE"]
    assert sum((batch["ids"] for batch in batches[2:]), []) == list(range(8))
    fields = {**fields_of(folders), "audio_max_tokens": 7999}
    with pytest.raises(UserError, match="AUDIO sample has a size of 8000 and max_tokens=7999.*audio_max_tokens"):
        iterator_of(task_of(fields)[0])
    fields["audio_max_tokens"] = 16000
    assert len(iterator_of(task_of(fields)[0])) > 0


def test_same_batches_with_workers(folders):
    seen = {}
    for workers in (0, 2):
        fields = fields_of(folders)
        fields["image"]["precompute_mask_config"] = MASKS
        seen[workers] = list(iterator_of(task_of(fields)[0], num_workers=workers).next_epoch_itr())
    assert modes(seen[0]) == modes(seen[2])
    for a, b in zip(seen[0], seen[2], strict=True):
        assert torch.equal(a["net_input"]["source"], b["net_input"]["source"])
        if a["net_input"]["mode"] == "IMAGE":
            assert torch.equal(a["net_input"]["precomputed_mask"], b["net_input"]["precomputed_mask"])


def test_resuming_in_the_middle_of_an_epoch(folders):
    task, _ = task_of(fields_of(folders))
    iterator = iterator_of(task)
    epoch = iterator.next_epoch_itr()
    for _ in range(3):
        next(epoch)
    state, rest = iterator.state_dict(), [batch["id"].tolist() for batch in epoch]
    resumed = iterator_of(task_of(fields_of(folders))[0])
    resumed.load_state_dict(state)
    assert [batch["id"].tolist() for batch in resumed.next_epoch_itr()] == rest


def test_bad_files_of_all_modalities_are_one_metric(tmp_path):
    folders = {}
    for name in ("speech", "vision", "text"):
        (tmp_path / name).mkdir()
        folders[name] = str(write_data(tmp_path / name, name))
    (tmp_path / "speech" / "1.wav").write_bytes(b"")
    for n in (0, 2):
        (tmp_path / "vision" / "train" / "b" / f"{n}.png").write_bytes(b"")
    task, _ = task_of(fields_of(folders))
    list(iterator_of(task).next_epoch_itr())
    with metrics.aggregate() as logged:
        task.reduce_metrics([{"loss": 1.0, "ntokens": 1, "nsentences": 1, "sample_size": 1}], ModelCriterion(task))
    assert logged.get_smoothed_values()["bad_files"] == 3


def test_a_stand_in_for_empty_batches_is_found(folders):
    task, _ = task_of(fields_of(folders))
    iterator = iterator_of(task)
    assert iterator.first_batch["net_input"]["mode"] == "AUDIO"
    dataset = task.dataset("train")
    groups = [[], *dataset.batches(dict.fromkeys(task.tasks, (None, 2)), 1, 1)[1:]]
    assert ModalityBatches(dataset, batch_samplers=groups, required=False).first_batch["net_input"]["mode"] == "IMAGE"
    assert len(dataset.sizes) == len(dataset)


def test_the_model_has_the_modalities_that_have_data(folders, monkeypatch):
    task, root = task_of(fields_of(folders, ("image", "text")))
    model = build(root, task)
    assert list(model.modality_encoders) == ["TEXT", "IMAGE"]
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: model)
    task.build_model(argparse.Namespace())
    batches = list(iterator_of(task).next_epoch_itr())
    net_input = next(batch["net_input"] for batch in batches if batch["net_input"]["mode"] == "IMAGE")
    assert net_input.keys() == {"source", "id", "mode"}
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="is for model data2vec_multi"):
        task.build_model(argparse.Namespace())


@pytest.mark.parametrize(
    ("fields", "model", "part"),
    [
        (
            {},
            {"modalities__image__input_size": 48},
            "task.image.input_size=24 and model.modalities.image.input_size=48",
        ),
        (
            {"image": {"precompute_mask_config": {"patch_size": 8}}},
            {},
            "task.image.precompute_mask_config.patch_size=8 and the model's is 4",
        ),
        (
            {"audio": {"precompute_mask_config": {"clone_batch": 4}}},
            {},
            "task.audio.precompute_mask_config.clone_batch=4 and the model's is 2",
        ),
        (
            {"audio": {"precompute_mask_config": {"feature_encoder_spec": "[(4, 1000, 500)]"}}},
            {},
            "task.audio.precompute_mask_config.feature_encoder_spec and the model's convolutions",
        ),
        (
            {"text": {"tokens_per_sample": 41}},
            {},
            "task.text.tokens_per_sample=41 is beyond model.modalities.text.max_source_positions=40",
        ),
    ],
)
def test_a_model_must_take_the_batches_of_every_modality(folders, monkeypatch, fields, model, part):
    every = fields_of(folders)
    for name, values in fields.items():
        every[name] |= values
    masks = {"mask_prob": 0.5, "mask_prob_adjust": 0, "mask_length": 2, "inverse_mask": False, "mask_dropout": 0}
    task, root = task_of(every, every=masks, **model)
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: build(root, task))
    with pytest.raises(UserError) as caught:
        task.build_model(argparse.Namespace())
    assert str(caught.value).startswith(part) and "\n" not in str(caught.value)
    # one that comes out of a checkpoint is for its own data
    assert task.build_model(argparse.Namespace(), from_checkpoint=True).modality_encoders


def test_what_the_model_takes_is_brought_for_every_modality(folders, monkeypatch):
    task, root = task_of(fields_of(folders))
    task.load_dataset("train")
    monkeypatch.setattr("fairseq.models.build_model", lambda *args, **kwargs: build(root, task))
    model = task.build_model(argparse.Namespace())
    assert task.audio_task.conv_spec == model.modality_encoders["AUDIO"].conv_spec
    for each in (task.audio_task, task.image_task):
        assert {"id", "masked_count"} <= each.dataset("train").model_takes
    assert task.text_task.dataset("train").source_lengths


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"audio": None, "image": None, "text": None}, "has no modality; give task.audio, task.image or task.text"),
        ({"audio_ratio": 0.0}, "task.audio_ratio must be above 0, got 0.0"),
        ({"image": {"data": "x"}}, "task.image.key=imgs, and all modalities share one name; set task.image.key=source"),
        ({"image": {"key": "source"}}, "task.image.data is not set; give the folder that holds"),
        ({"text": {"data": "x"}}, "task.text needs d2v2_multi: true"),
        ({"text": {"data": "nowhere", **TEXT}}, "task.text.data=nowhere"),
        ({"audio": {"max_sample_size": 5}}, "task.audio.data is not set"),
    ],
)
def test_wrong_fields_are_refused_at_once(folders, change, part):
    with pytest.raises(UserError) as caught:
        task_of({**fields_of(folders), **change})
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_errors_of_a_split_name_the_modality(folders):
    task, _ = task_of(fields_of(folders, ("image", "text")))
    with pytest.raises(UserError, match="Give its parent folder as task.image.data"):
        task.load_dataset("nothing")


RUN = """
common: {{cpu: true, seed: 1, log_format: json, log_interval: 1, user_dir: {plugin}}}
checkpoint: {{save_dir: {out}, no_epoch_checkpoints: true}}
task:
  _name: multimodal_pretraining
  audio: {{data: {speech}, max_sample_size: 8000, normalize: true, precompute_mask_config: {{}}}}
  image: {{data: {vision}, input_size: 24, key: source, precompute_mask_config: {{}}}}
  text:
    {{data: {text}, d2v2_multi: true, skip_masking: true, tokens_per_sample: 32, sample_break_mode: none,
      include_index: true}}
dataset: {{batch_size: 2, num_workers: 0, required_batch_size_multiple: 1, valid_subset: valid}}
distributed_training: {{distributed_world_size: 1}}
criterion: {{_name: d2v_regression}}
optimization: {{max_update: {updates}, lr: [0.001], update_freq: [1], clip_norm: 1}}
optimizer: {{_name: d2v_adamw}}
lr_scheduler: {{_name: fixed}}
model: {model}
"""


def composed_run(folders, tmp_path):
    model = OmegaConf.to_container(root_config().model)
    for each in model["modalities"].values():
        each |= {"inverse_mask": True, "mask_prob": 0.6, "mask_length": 2}
    path = tmp_path / "run.yaml"
    plugin = Path(d2v_plugin.tasks.multimodal_pretraining.__file__).parents[1]
    path.write_text(RUN.format(plugin=plugin, out=tmp_path / "out", updates=25, model=json.dumps(model), **folders))
    return compose_config(path)


@pytest.mark.parametrize(
    ("processes", "backend", "unused", "fine"),
    [
        (2, "c10d", False, False),
        (2, "pytorch_ddp", False, False),
        (2, "legacy_ddp", False, True),
        (2, "c10d", True, True),
        (1, "c10d", False, True),
    ],
)
def test_a_backend_that_waits_for_all_modalities(folders, tmp_path, monkeypatch, processes, backend, unused, fine):
    cfg = composed_run(folders, tmp_path)
    cfg.distributed_training.ddp_backend, cfg.distributed_training.find_unused_parameters = backend, unused
    cfg = resolved(cfg)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda *args: processes)
    if fine:
        assert tasks.setup_task(cfg.task).supported_modalities
    else:
        with pytest.raises(UserError) as caught:
            tasks.setup_task(cfg.task)
        assert str(caught.value).startswith(f"distributed_training.ddp_backend={backend} waits for gradients of all")
        assert str(caught.value).endswith("set distributed_training.ddp_backend=legacy_ddp")
    # a checkpoint is loaded with the settings of its training, which do not matter then
    assert tasks.setup_task(cfg.task, from_checkpoint=True).supported_modalities
    cfg.task.image = cfg.task.text = None
    assert tasks.setup_task(cfg.task).supported_modalities == ["AUDIO"]


def test_updates_of_a_tiny_model_and_its_checkpoint(folders, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(composed_run(folders, tmp_path))
    logs = [json.loads(record.getMessage()) for record in caplog.records if record.name == "train_inner"]
    assert len(logs) == 25
    for name in ("AUDIO", "IMAGE", "TEXT"):
        values = [float(log[f"target_var_{name}"]) for log in logs if log.get(f"target_var_{name}") is not None]
        assert len(values) > 2 and all(0 < value < 10 for value in values), name
    valid = [json.loads(record.getMessage()) for record in caplog.records if record.name == "valid"]
    assert valid and float(valid[-1]["valid_loss"]) > 0
    state = read_checkpoint(tmp_path / "out" / "checkpoint_last.pt", keys=["model", "task_state"])
    assert "symbols" in state["task_state"]
    encoders = {key.split(".")[1] for key in state["model"] if key.startswith("modality_encoders.")}
    assert encoders == {"AUDIO", "IMAGE", "TEXT"}
    # the dictionary travels with the checkpoint
    gone = {**fields_of(folders, ("text",)), "text": {**TEXT, "data": "gone"}}
    root = OmegaConf.create({"task": {"_name": NAME, **gone}, "common": {"seed": 1}})
    task = tasks.setup_task(root.task, from_checkpoint=True)
    task.load_state_dict(state["task_state"])
    assert len(task.text_task.source_dictionary) == len(state["task_state"]["symbols"])
