"""Image classifiers beyond parity: other input sizes, from scratch, settings that upstream cannot run, bad ones."""

import dataclasses

import pytest
import torch
import upstream
import upstream_images
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf
from tiny_multi import root_config, tiny

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.image_head import counts, result
from d2v_plugin.fine_tuning.image_size import stretched
from d2v_plugin.models.data2vec_image_classification import (
    Data2VecImageClassificationConfig,
    Data2VecImageClassificationModel,
)
from d2v_plugin.models.mae_image_classification import (
    MaeImageClassificationConfig,
    MaeImageClassificationModel,
    PredictionMode,
)
from d2v_plugin.modules.patches import sincos_positions

NEW = (MaeImageClassificationModel, MaeImageClassificationConfig)
OLD = (Data2VecImageClassificationModel, Data2VecImageClassificationConfig)
BODIES = {
    "multi": (upstream_images.multi, NEW),
    "mae": (upstream_images.mae, NEW),
    "1.0": (upstream_images.vision, OLD),
}


def classifier(kind, path, input_size=24, **settings):
    """A model on the checkpoint at ``path``, of a kind in BODIES."""
    model, config = BODIES[kind][1]
    root = {"task": {"data": "-", "input_size": input_size}, "model": {"num_classes": 5, "model_path": path} | settings}
    return model(merge_with_parent(config(), OmegaConf.create(root).model)).eval()


@pytest.fixture
def saved(tmp_path):
    """Writes a tiny checkpoint with upstream's keys; gives its path."""

    def write(kind, **settings):
        state, _ = BODIES[kind][0](**settings)
        torch.save(state, tmp_path / f"{kind}.pt")
        return str(tmp_path / f"{kind}.pt")

    return write


@pytest.mark.parametrize("kind", BODIES)
def test_a_fine_tuned_model_is_built_again_without_the_file(saved, kind, tmp_path):
    path = saved(kind)
    model = classifier(kind, path, drop_path_rate=0.25)
    # what a checkpoint keeps of it
    kept = OmegaConf.to_container(model.cfg.pretrained_model_args, resolve=True, enum_to_str=True)
    (tmp_path / f"{kind}.pt").unlink()
    again = classifier(kind, "???", pretrained_model_args=kept, drop_path_rate=0.25)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(again(images), model(images)) and model(images).shape == (2, 5)


@pytest.mark.parametrize("kind", BODIES)
def test_from_scratch_has_the_shape_alone(saved, kind):
    path = saved(kind)
    torch.manual_seed(1)
    trained, scratch = classifier(kind, path), classifier(kind, path, no_pretrained_weights=True)
    assert list(trained.state_dict()) == list(scratch.state_dict())
    name = next(name for name in trained.state_dict() if name.endswith("qkv.weight"))
    assert not torch.allclose(trained.state_dict()[name], scratch.state_dict()[name], atol=0.05)


@pytest.mark.parametrize("size", [32, 16])
@pytest.mark.parametrize("kind", BODIES)
def test_positions_are_stretched_to_another_size(saved, kind, size):
    """Features of a constant image hang on positions alone; those of a stretched model are the old ones in between."""
    path = saved(kind)
    model = classifier(kind, path, input_size=size)
    assert model(torch.randn(2, 3, size, size)).isfinite().all()
    model(torch.randn(2, 3, size, size), torch.tensor([1, 2]))["losses"]["regression"].sum().backward()
    with pytest.raises(UserError, match="images of shape"):
        model(torch.randn(2, 3, 24, 24))
    same = classifier(kind, path)
    shared = {name for name, value in same.state_dict().items() if value.shape == model.state_dict()[name].shape}
    assert same.state_dict().keys() - shared
    assert all(torch.equal(same.state_dict()[name], model.state_dict()[name]) for name in shared if "head" not in name)
    tables = [name for name in same.state_dict().keys() - shared if name.endswith("relative_position_bias_table")]
    assert bool(tables) == (kind == "1.0")
    for name in tables:  # what concerns CLS comes last and stays
        own, there = model.state_dict()[name][-3:], same.state_dict()[name][-3:]
        assert torch.equal(own, there) and there.unique().numel() > 1


def test_stretching():
    table = sincos_positions(16, 6, 1)
    assert torch.equal(stretched(table, 37), table)
    larger = stretched(table, 145)
    assert larger.shape == (145, 16) and torch.equal(larger[0], table[0])
    # twice as fine: pairs of neighbours average to about what was there, away from the border
    grid = larger[1:].reshape(6, 2, 6, 2, 16).mean((1, 3))[1:-1, 1:-1]
    assert (grid - table[1:].reshape(6, 6, 16)[1:-1, 1:-1]).abs().max() < 0.1
    biases = torch.arange(25 + 3).float().unsqueeze(1)
    smaller = stretched(biases, 9 + 3, 3, last=True)
    assert smaller[-3:, 0].tolist() == [25, 26, 27] and abs(float(smaller[4, 0]) - 12) < 1e-4


def test_learned_alibi_cannot_be_stretched_but_removed(tmp_path):
    alibi = {"use_alibi_encoder": True, "learned_alibi": True, "alibi_max_pos": 36}
    alibi = {f"modalities__image__{key}": value for key, value in alibi.items()}
    cfg = OmegaConf.to_container(root_config("IMAGE", **alibi), resolve=True)
    path = str(tmp_path / "alibi.pt")
    torch.save({"cfg": cfg | {"task": {"_name": "-"}}, "model": tiny("IMAGE", **alibi).state_dict()}, path)
    classifier("multi", path)
    with pytest.raises(UserError, match="a learned table of ALiBi biases for 24; set task.input_size=24, or model.rem"):
        classifier("multi", path, input_size=32)
    model = classifier("multi", path, remove_alibi=True)
    assert not any("alibi" in name for name in model.state_dict())
    assert classifier("multi", path, remove_alibi=True, input_size=32)(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_names_of_early_code(saved):
    path, image = saved("multi"), "modality_encoders.IMAGE."
    state = read_checkpoint(path, mmap=False)
    positions = state["model"].pop(f"{image}fixed_positional_encoder.positions")
    state["model"] |= {f"{image}positional_encoder.pos_embed": positions + 1, f"{image}encoder_mask": torch.zeros(1)}
    torch.save(state, path)
    for size in (24, 32):
        found = classifier("multi", path, input_size=size).state_dict()
        assert not any("pos_embed" in name or "encoder_mask" in name for name in found)
        own = found[f"model.{image}fixed_positional_encoder.positions"]
        assert abs(float(own.mean() - positions.mean()) - 1) < 0.05
        assert size == 32 or torch.equal(own, positions + 1)


def test_the_head_alone_is_trained(saved):
    model = classifier("multi", saved("multi"), linear_classifier=True).train()
    model(torch.randn(2, 3, 24, 24), torch.tensor([0, 4]))["losses"]["regression"].sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "fc_norm.weight",
        "fc_norm.bias",
        "head.weight",
        "head.bias",
    }


def test_counts_of_right_answers():
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]])
    found = counts(logits, torch.tensor([0, 1, 0]))
    assert {name: int(value) for name, value in found.items()} == {"_correct1": 1, "_correct5": 2, "_classified": 3}
    few = counts(logits[:, :3], torch.tensor([2, 1, 0]))
    assert int(few["_correct5"]) == 3
    assert "correct" not in result(logits, torch.tensor([0, 1, 0]), training=True, smoothing=0.1)


@pytest.mark.parametrize(
    ("kind", "settings", "part"),
    [
        ("multi", {"input_size": 26}, "task.input_size=26 is not a multiple of patch_size=4; set task.input"),
        ("mae", {"input_size": 26}, "task.input_size=26 is not a multiple of patch_size=4"),
        ("1.0", {"input_size": 26}, "task.input_size=26 is not a multiple of patch_size=4"),
        ("multi", {"prediction_mode": "CLS_TOKEN"}, "the pre-trained model has no CLS token; set it to MEAN"),
        ("multi", {"label_smoothing": 1.5}, "model.label_smoothing must be between 0 and 1"),
        ("multi", {"drop_path_rate": 1.0}, "model.drop_path_rate must be at least 0 and below 1"),
        ("multi", {"num_classes": 0}, "model.num_classes must be at least 1, got 0"),
        ("1.0", {"num_classes": 0}, "model.num_classes must be at least 1, got 0"),
        ("mae", {"mixup_mode": "half"}, "model.mixup_mode must be one of batch, pair, elem"),
        ("1.0", {"mixup": -1.0}, "model.mixup must be at least 0"),
        ("multi", {"model_path": "???"}, "model.model_path is not set; give a checkpoint of pre-training"),
        ("1.0", {"model_path": "???"}, "model.model_path is not set; give a checkpoint of pre-training"),
    ],
)
def test_settings_that_cannot_work(saved, kind, settings, part):
    path = saved(kind)
    with pytest.raises(UserError) as caught:
        classifier(kind, path, **settings)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "given"), [("multi", "1.0"), ("1.0", "multi"), ("1.0", "mae")])
def test_a_checkpoint_of_another_kind_is_named(saved, kind, given):
    path, name = saved(given), {"multi": "data2vec_multi", "mae": "mae", "1.0": "data2vec_vision"}[given]
    with pytest.raises(UserError, match=f"model.model_path={path} holds a {name} model; give a checkpoint of"):
        classifier(kind, path)


def test_a_checkpoint_of_another_modality_is_named(tmp_path):
    cfg = OmegaConf.to_container(root_config("AUDIO"), resolve=True) | {"task": {"_name": "audio_pretraining"}}
    torch.save({"cfg": cfg, "model": tiny("AUDIO").state_dict()}, tmp_path / "speech.pt")
    with pytest.raises(UserError, match="was trained on AUDIO; this needs a model of IMAGE"):
        classifier("multi", str(tmp_path / "speech.pt"))


@pytest.mark.parametrize(
    ("name", "config", "upstreams"),
    [
        ("mae_image_classification", MaeImageClassificationConfig, "MaeImageClassificationConfig"),
        ("data2vec_image_classification", Data2VecImageClassificationConfig, "Data2VecImageClassificationConfig"),
    ],
)
def test_every_upstream_field_keeps_its_default(name, config, upstreams):
    module = upstream.load_v2(f"models.{name}")
    fields, ours = dataclasses.fields(getattr(module, upstreams)), config.__dataclass_fields__
    assert len(fields) > 8
    for field in fields:
        default, expected = ours[field.name].default, field.default
        assert getattr(default, "name", default) == getattr(expected, "name", expected), field.name
    if hasattr(module, "PredictionMode"):
        assert [(m.name, m.value) for m in module.PredictionMode] == [(m.name, m.value) for m in PredictionMode]
