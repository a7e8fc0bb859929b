"""``audio_classification``: settings, mixtures, freezing, and one line for a checkpoint or a head that does not fit."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf
from tiny_model import TINY, make
from tiny_multi import root_config, tiny

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.fine_tuning.waveform_mixup import Mixture
from d2v_plugin.models.audio_classification import AudioClassificationModel
from d2v_plugin.models.audio_classification_config import AudioClassificationConfig
from d2v_plugin.models.data2vec_audio import Data2VecAudioConfig

CLASSES = 5
TASK = {"_name": "d2v_audio_pretraining", "data": "/not/on/this/machine", "normalize": True}
versions = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    first = OmegaConf.to_container(OmegaConf.structured(Data2VecAudioConfig), resolve=False, enum_to_str=True)
    first = {k: v for k, v in first.items() if not str(v).startswith("${")} | TINY | {"_name": "data2vec_audio"}
    second = OmegaConf.to_container(root_config("AUDIO"), resolve=True)
    torch.manual_seed(0)
    cfgs = {1: ({"model": first}, make()), 2: (second, tiny("AUDIO"))}
    for version, (cfg, model) in cfgs.items():
        torch.save({"cfg": {**cfg, "task": TASK}, "model": model.state_dict()}, folder / f"{version}.pt")
    return {version: folder / f"{version}.pt" for version in cfgs}


def config(path, **fields):
    values = {"model_path": str(path), "normalize": True, "data": "nowhere", "ddp_backend": "legacy_ddp"}
    values |= {"mask_length": 3, "mask_channel_length": 4, "feature_grad_mult": 1.0}
    root = OmegaConf.create({"model": {**values, **fields}})
    return merge_with_parent(AudioClassificationConfig(), root.model)


def build(path, classes=CLASSES, **fields):
    torch.manual_seed(2)
    labels = {f"/m/{n}": n for n in range(classes)}
    model = AudioClassificationModel.build_model(config(path, **fields), SimpleNamespace(labels=labels))
    model.set_num_updates(1)
    return model.train()


def batch():
    generator = torch.Generator().manual_seed(7)
    source = torch.randn(4, 3000, generator=generator)
    padding_mask = torch.zeros(4, 3000, dtype=torch.bool)
    padding_mask[3, 2000:] = True
    label = (torch.rand(4, CLASSES, generator=generator) < 0.5).float()
    label[:, 0] = 1
    return {"source": source.masked_fill(padding_mask, 0), "padding_mask": padding_mask, "label": label}


def losses(model, seed):
    torch.manual_seed(seed)
    return model(**batch(), id=torch.arange(4), source_lengths=[3000, 3000, 3000, 2000])["losses"]["main"]


def varies(model):
    if model.takes_ids:
        # masks of 2.0 are a function of seed, update and sample
        model.d2v_model.set_num_updates(1)
        first = losses(model, 1)
        model.d2v_model.set_num_updates(2)
        return not torch.equal(first, losses(model, 2))
    return not torch.equal(losses(model, 1), losses(model, 2))


RANDOM = {
    "dropout": {"dropout": 0.5},
    "attention_dropout": {"attention_dropout": 0.5},
    "activation_dropout": {"activation_dropout": 0.5},
    "dropout_input": {"dropout_input": 0.5},
    "final_dropout": {"final_dropout": 0.5},
    "layerdrop": {"layerdrop": 0.5},
    "mask_prob": {"apply_mask": True, "mask_prob": 0.5},
    "mask_channel_prob": {"apply_mask": True, "mask_prob": 0.0, "mask_channel_prob": 0.5},
    "source_mixup": {"source_mixup": 0.2},
}
CASES = [(version, setting, fields) for version in (1, 2) for setting, fields in RANDOM.items()]
CASES += [(2, "drop_path", {"drop_path": 0.5})]


@versions
def test_without_any_of_them_nothing_is_random(checkpoints, version):
    assert not varies(build(checkpoints[version]))
    assert not varies(build(checkpoints[version], source_mixup=0.2, mixup_prob=0.0))
    assert not varies(build(checkpoints[version], mask_prob=0.5))


@pytest.mark.parametrize(("version", "setting", "fields"), CASES)
def test_each_one_alone_reaches_training_and_not_evaluation(checkpoints, version, setting, fields):
    model = build(checkpoints[version], **fields)
    assert varies(model)
    assert torch.equal(losses(model.eval(), 1), losses(build(checkpoints[version]).eval(), 1))


@versions
def test_labels_are_mixed_only_if_asked_for(checkpoints, version):
    inputs = batch()
    mixture = Mixture(torch.tensor([0.5, 0.6, 1.0, 1.0]), torch.tensor([2, 3, 0, 1]))
    found = {}
    for mix in (True, False):
        model = build(checkpoints[version], source_mixup=0.2, label_mixup=mix)
        found[mix] = model(**inputs, mixture=mixture)
    losses = [found[mix]["losses"]["main"] for mix in (True, False)]
    changed = (losses[0] != losses[1]).any(1)
    assert changed.tolist() == [True, True, False, False]
    label = inputs["label"]
    assert float(found[False]["sample_size"]) == float(label.sum())
    expected = label.sum() - 0.5 * (label[0].sum() - label[2].sum()) - 0.4 * (label[1].sum() - label[3].sum())
    torch.testing.assert_close(found[True]["sample_size"], expected)
    assert torch.equal(inputs["label"], batch()["label"]) and torch.equal(inputs["source"], batch()["source"])


@versions
def test_the_body_waits_for_freeze_finetune_updates(checkpoints, version):
    model = build(checkpoints[version], freeze_finetune_updates=5)
    for update, frozen in ((4, True), (5, False)):
        model.set_num_updates(update)
        model.zero_grad()
        losses(model, 1).sum().backward()
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
        assert (with_gradient == {"proj.weight", "proj.bias"}) is frozen


@versions
def test_from_scratch_weights_are_random(checkpoints, version):
    pretrained, scratch = (build(checkpoints[version], no_pretrained_weights=value) for value in (False, True))
    name = "d2v_model.encoder.layers.0.fc1.weight" if version == 1 else "d2v_model.blocks.0.mlp.fc1.weight"
    expected = read_checkpoint(checkpoints[version], mmap=False)["model"][name.removeprefix("d2v_model.")]
    assert torch.equal(pretrained.state_dict()[name], expected)
    assert not torch.equal(scratch.state_dict()[name], expected)


@versions
def test_length_aware_pooling_leaves_padding_out(checkpoints, version):
    inputs = batch()
    aware, upstream = (build(checkpoints[version], length_aware_pooling=v).eval() for v in (True, False))
    found = [model(inputs["source"], inputs["padding_mask"]) for model in (aware, upstream)]
    torch.testing.assert_close(found[0][:3], found[1][:3])
    assert not torch.allclose(found[0][3], found[1][3])


@versions
def test_parameters_stand_in_the_groups_of_the_recipe(checkpoints, version):
    for head in ({}, {"prediction_mode": "proj_avg_proj"}, {"conv_kernel": 3, "two_convs": True}):
        model = build(checkpoints[version], **head)
        groups = {name: p.param_group for name, p in model.named_parameters()}
        assert {name for name in groups if groups[name] == "projection"} == {n for n in groups if n.startswith("proj")}
        assert set(groups.values()) == {"projection", "pretrained"}


@versions
def test_a_fine_tuned_model_is_built_from_what_it_carries(checkpoints, version):
    model = build(checkpoints[version], prediction_mode="average")
    cfg = OmegaConf.create(OmegaConf.to_container(model.cfg, resolve=True, enum_to_str=True))
    cfg.model_path = "gone.pt"
    again = AudioClassificationModel(cfg, CLASSES)
    again.load_state_dict(model.state_dict())
    inputs = batch()
    assert torch.equal(again.eval()(**inputs)["losses"]["main"], model.eval()(**inputs)["losses"]["main"])


@versions
def test_other_convolutions_than_the_bodys(checkpoints, version):
    fields = {"conv_feature_layers": "[(8, 20, 10)] + [(8, 4, 4)]", "no_pretrained_weights": True}
    model = build(checkpoints[version], **fields)
    assert losses(model, 1).isfinite().all()
    strides = [m.stride[0] for m in model.d2v_model.modules() if isinstance(m, torch.nn.Conv1d)]
    assert strides[:2] == [10, 4]
    refused("do not fit the model", build, checkpoints[version], conv_feature_layers=fields["conv_feature_layers"])


@versions
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["lin_softmax", "average_sigmoid", "proj_avg_proj", "cls"])
def test_half_precision_stays_finite(checkpoints, version, dtype, mode):
    fields = {"source_mixup": 0.3, "label_mixup": True, "gain_mode": "A_weighting", "apply_mask": True}
    model = build(checkpoints[version], prediction_mode=mode, mask_prob=0.3, **fields).to(dtype)
    inputs = batch()
    result = model(inputs["source"].to(dtype), inputs["padding_mask"], inputs["label"].to(dtype))
    loss = result["losses"]["main"].float().sum()
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# -- what is refused -------------------------------------------------------------------------------


def refused(match, call, *args, **kwargs):
    with pytest.raises(UserError, match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


@versions
def test_a_head_of_another_size(checkpoints, version):
    state = build(checkpoints[version], classes=CLASSES).state_dict()
    other = build(checkpoints[version], classes=CLASSES + 2)
    refused(
        r"head proj\.weight is \(5, \d+\) and this model's \(7, \d+\); use the classes", other.load_state_dict, state
    )


@versions
def test_normalisation_that_differs(checkpoints, version):
    refused(r"task\.normalize=False .* pre-trained with True", build, checkpoints[version], normalize=False)


def test_checkpoints_of_another_kind(checkpoints, tmp_path):
    state = read_checkpoint(checkpoints[2], mmap=False)
    state["cfg"]["model"]["supported_modality"] = "IMAGE"
    torch.save(state, tmp_path / "image.pt")
    refused("was trained on IMAGE; this needs a model of AUDIO", build, tmp_path / "image.pt")
    state["cfg"]["model"]["_name"] = "data2vec_text"
    torch.save(state, tmp_path / "text.pt")
    refused(
        "holds a data2vec_text model; give a checkpoint of pre-training with data2vec_audio",
        build,
        tmp_path / "text.pt",
    )
    refused("no checkpoint at", build, tmp_path / "gone.pt")
    refused("model.model_path is not set", build, "")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"source_mixup": 1.5}, "source_mixup is a share of up to 1"),
        ({"mixup_prob": 2.0}, "mixup_prob must be between 0 and 1"),
        ({"gain_mode": "loud"}, "gain_mode=loud is not known; choose one of none"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and below 1"),
        ({"freeze_finetune_updates": -1}, "freeze_finetune_updates must be at least 0"),
        ({"prediction_mode": "median"}, "prediction_mode=median is not known"),
    ],
)
def test_settings_that_cannot_be(checkpoints, fields, match):
    refused(match, build, checkpoints[1], **fields)


def test_a_task_without_classes(checkpoints):
    refused(
        "needs a task with classes", AudioClassificationModel.build_model, config(checkpoints[1]), SimpleNamespace()
    )
