"""Image classifiers against upstream: same weights, images and labels give the same logits, loss and gradients."""

import copy
from types import SimpleNamespace

import pytest
import torch
import upstream
import upstream_images
from fairseq.dataclass.utils import merge_with_parent
from omegaconf import OmegaConf
from upstream_images import SIZE

from d2v_plugin.data.images.mixing import Mixing
from d2v_plugin.models.data2vec_image_classification import (
    Data2VecImageClassificationConfig,
    Data2VecImageClassificationModel,
)
from d2v_plugin.models.mae_image_classification import MaeImageClassificationConfig, MaeImageClassificationModel

CLASSES = 7
MULTI, MAE = upstream_images.multi, upstream_images.mae
CLS = {"modalities__image__num_extra_tokens": 1}
ALIBI = {"modalities__image__use_alibi_encoder": True}
# the body and its settings, and those of the classifier
CASES = {
    "multi": (MULTI, CLS, {}),
    "multi, no norm": (MULTI, CLS, {"use_fc_norm": False, "layer_decay": 0.75}),
    "multi, CLS": (MULTI, CLS, {"prediction_mode": "CLS_TOKEN"}),
    "multi, linear softmax": (MULTI, {}, {"prediction_mode": "LIN_SOFTMAX", "no_decay_blocks": False}),
    "multi, pre-norm": (MULTI, {"layer_norm_first": True}, {"layer_decay": 0, "norm_eps": 1e-3}),
    "multi, one rate": (MULTI, {}, {"layer_decay": 1.0}),
    "multi, ALiBi": (MULTI, ALIBI, {}),
    "multi, head alone": (MULTI, {}, {"linear_classifier": True}),
    "mae": (MAE, {}, {}),
    "mae, CLS": (MAE, {}, {"prediction_mode": "CLS_TOKEN", "layer_decay": 0.75}),
    "mae, one rate": (MAE, {}, {"layer_decay": 0}),
}


def config(path="-", **settings):
    root = {"task": {"data": "/nowhere", "input_size": SIZE}, "model": {"model_path": path, "num_classes": CLASSES}}
    root["model"] |= {"mixup": 0.0, "cutmix": 0.0, "drop_path_rate": 0.0, **settings}
    return merge_with_parent(MaeImageClassificationConfig(), OmegaConf.create(root).model)


def upstreams(state, build, cfg):
    """Upstream's classifier on the body of ``state``."""
    module = upstream.load_v2("models.mae_image_classification")
    task = SimpleNamespace(build_model=lambda model_cfg, from_checkpoint: build(model_cfg))
    with pytest.MonkeyPatch.context() as patch:
        state = {"cfg": OmegaConf.create(state["cfg"]), "model": dict(state["model"])}
        patch.setattr(module, "checkpoint_utils", SimpleNamespace(load_checkpoint_to_cpu=lambda path, _: state))
        patch.setattr(module, "tasks", SimpleNamespace(setup_task=lambda cfg: task))
        names = {name: getattr(cfg, name) for name in module.MaeImageClassificationConfig.__dataclass_fields__}
        names["prediction_mode"] = module.PredictionMode[cfg.prediction_mode.name]
        with upstream.current_stack():
            return module.MaeImageClassificationModel(module.MaeImageClassificationConfig(**names))


def pair(tmp_path, case, **more):
    """Upstream's classifier and ours, which has taken over its weights."""
    body, of_body, settings = CASES[case]
    state, build = body(**of_body)
    torch.save(state, tmp_path / "upstream.pt")
    cfg = config(str(tmp_path / "upstream.pt"), **settings, **more)
    theirs, ours = upstreams(state, build, copy.deepcopy(cfg)), MaeImageClassificationModel(cfg)
    start = ours.state_dict()
    assert list(start) == list(theirs.state_dict())
    for name, value in theirs.model.state_dict().items():
        torch.testing.assert_close(start["model." + name], value, rtol=0, atol=1e-6)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def relative(a, b):
    return float(((a - b).norm() / b.norm().clamp(min=1e-12)).detach())


def pair_of_1(tmp_path, body, **settings):
    """The same for 1.0."""
    module = upstream.load("data2vec_image_classification")
    state, build = upstream_images.vision(**body)
    torch.save(state, tmp_path / "upstream.pt")
    root = {"task": {"data": "/nowhere", "input_size": SIZE}, "model": {"model_path": str(tmp_path / "upstream.pt")}}
    root["model"] |= {"num_classes": CLASSES, "mixup": 0.0, "cutmix": 0.0, **settings}
    cfg = merge_with_parent(Data2VecImageClassificationConfig(), OmegaConf.create(root).model)
    fields = {name: getattr(cfg, name) for name in module.Data2VecImageClassificationConfig.__dataclass_fields__}
    task = SimpleNamespace(build_model=lambda model_cfg, from_checkpoint: build(model_cfg))
    with pytest.MonkeyPatch.context() as patch:
        read = {**state, "cfg": OmegaConf.create(state["cfg"])}
        patch.setattr(module, "checkpoint_utils", SimpleNamespace(load_checkpoint_to_cpu=lambda path, _: read))
        patch.setattr(module, "tasks", SimpleNamespace(setup_task=lambda cfg: task))
        # it removes what pre-training alone needs, and then finds that the file has it
        patch.setattr(
            module.Data2VecImageClassificationModel,
            "load_model_weights",
            lambda self, state, model, cfg: model.load_state_dict(
                {name: value for name, value in state["model"].items() if name in model.state_dict()}
            ),
        )
        with upstream.current_stack():
            theirs = module.Data2VecImageClassificationModel(module.Data2VecImageClassificationConfig(**fields))
    ours = Data2VecImageClassificationModel(cfg)
    start = ours.state_dict()
    assert list(start) == list(theirs.state_dict())
    assert all(torch.equal(start["model." + name], value) for name, value in theirs.model.state_dict().items())
    assert start["head.weight"].abs().max() < 1e-3
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("body", [{}, {"shared_rel_pos_bias": False}], ids=["shared", "own"])
def test_1_logits_loss_and_every_gradient(tmp_path, body, mixed):
    theirs, ours = pair_of_1(tmp_path, body)
    assert_same(theirs, ours, mixed)
    assert all("lr_scale" not in override["optimizer"] for _, override in overrides(ours))


def test_1_pools_what_the_paper_pools(tmp_path):
    """Upstream's mean lacks the first patch: an image that differs there alone, seen by no attention, is the same."""
    theirs, ours = pair_of_1(tmp_path, {})
    x = torch.randn(2, 36, 48)
    for model in (theirs, ours):
        model.eval().model.forward = lambda img, mask: x
    image = torch.zeros(2, 3, SIZE, SIZE)
    left_out = ours(image)
    assert relative(left_out, theirs(image)) < 1e-5
    ours.cfg.pool_all_patches = True
    assert relative(ours(image), ours.head(ours.fc_norm(x.mean(1)))) < 1e-6
    assert relative(ours(image), left_out) > 1e-3


def test_1_rates_are_those_of_beit(tmp_path):
    ours = pair_of_1(tmp_path, {}, layer_decay=0.5, drop_path_rate=0.2, attention_dropout=0.1)[1]
    found = {name: override["optimizer"] for name, override in overrides(ours)}
    for name, wanted in found.items():
        where = name.removeprefix("model.")
        layer = int(where.split(".")[2]) + 1 if "blocks" in where else 0 if where[:5] in ("cls_e", "patch") else 4
        assert wanted.get("lr_scale", 1) == 0.5 ** (4 - layer), name
        parameter = ours.get_parameter(name)
        spared = parameter.dim() == 1 or name == "model.cls_emb"
        assert wanted.get("weight_decay_scale", 1) == (not spared), name
    assert len(found) > 40
    blocks = ours.model.encoder.blocks
    assert [block.drop_path.p for block in blocks] == pytest.approx([0, 0.1, 0.2])
    assert {block.attn.dropout for block in blocks} == {0.1}


def overrides(model):
    """``(name, what it asks of the optimiser)`` of every parameter."""
    return [(name, getattr(p, "optim_overrides", {"optimizer": {}})) for name, p in model.named_parameters()]


def assert_same(theirs, ours, mixed):
    """Logits, loss, correct answers and gradients.

    Args:
        mixed: train on labels that mixup made of two images' own.
    """
    images, labels = torch.randn(4, 3, SIZE, SIZE), torch.randint(0, CLASSES, (4,))
    for model in (theirs, ours):
        model.eval()
    with torch.no_grad():
        assert relative(ours(images), theirs(images)) < 1e-5
        expected, found = theirs(images, labels), ours(images, labels)
        assert relative(found["losses"]["regression"], expected["losses"]["regression"]) < 1e-5
        assert found["correct"] == expected["correct"] and found["sample_size"] == expected["sample_size"] == 4

    # what timm makes of a batch is what our task passes on
    soft = Mixing(CLASSES).smooth(labels).lerp(Mixing(CLASSES).smooth(labels.flip(0)), 0.3)
    for model in (theirs, ours):
        model.train()
    if mixed:
        theirs.mixup_fn = lambda images, labels: (images, soft)
    results = theirs(images, labels), ours(images, soft if mixed else labels)
    for out in results:
        (out["losses"]["regression"].sum() * 0.37).backward()
    assert relative(*(out["losses"]["regression"] for out in results[::-1])) < 1e-5
    grads, compared = dict(ours.named_parameters()), 0
    for name, parameter in theirs.named_parameters():
        assert (grads[name].grad is None) == (parameter.grad is None), name
        if parameter.grad is not None:
            assert relative(grads[name].grad, parameter.grad) < 1e-5 or parameter.grad.abs().max() < 1e-9, name
            compared += 1
    assert compared == 4 if getattr(ours.cfg, "linear_classifier", False) else compared > 40


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_every_gradient(tmp_path, case, mixed):
    theirs, ours = pair(tmp_path, case)
    assert_same(theirs, ours, mixed)


@pytest.mark.parametrize("case", CASES)
def test_rates_and_decays_are_those_of_upstream(tmp_path, case):
    theirs, ours = pair(tmp_path, case)
    found = {name: getattr(p, "optim_overrides", None) for name, p in ours.named_parameters()}
    expected = {name: getattr(p, "optim_overrides", None) for name, p in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name] == wanted, name
    scales = {override["optimizer"].get("lr_scale", 1) for override in found.values() if override}
    assert (len(scales) > 3) == (ours.cfg.layer_decay not in (0, 1))


@pytest.mark.parametrize("case", ["multi", "mae"])
def test_drop_path_and_dropouts_reach_the_body(tmp_path, case):
    """The configuration that upstream changes the body's into, and ours."""
    rates = {"drop_path_rate": 0.3, "attention_dropout": 0.1, "activation_dropout": 0.2, "encoder_dropout": 0.05}
    theirs, ours = pair(tmp_path, case, **rates)
    found = ours.cfg.pretrained_model_args.model
    expected = theirs.cfg.pretrained_model_args.model
    keys = ["attention_dropout", "activation_dropout"]
    keys += ["drop_path_rate", "block_dropout"] if case == "mae" else ["encoder_dropout", "end_drop_path_rate"]
    for key in keys:
        assert found[key] == expected[key] > 0, key
    if case == "multi":
        for key in ("start_drop_path_rate", "layerdrop", "post_mlp_drop", "dropout_input"):
            assert found[key] == expected[key], key
        for key in ("start_drop_path_rate", "end_drop_path_rate", "prenet_layerdrop", "prenet_dropout"):
            assert found.modalities.image[key] == expected.modalities.image[key], key
        dropped = [block.drop_path.p for block in ours.model.blocks]
        assert dropped == pytest.approx([0.15, 0.225, 0.3])
    else:
        assert [block.drop_path.p for block in ours.model.blocks] == pytest.approx([0.0, 0.15, 0.3])


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "neither"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_mixed_batch_is_the_one_upstream_makes(tmp_path, version, kind):
    """Upstream mixes in the model and ours in the task: the same draws give the same loss."""
    settings = {"mixup": 0.8 * (kind != "cutmix"), "cutmix": 1.0 * (kind != "mixup"), "label_smoothing": 0.2}
    if version == 2:
        theirs, ours = pair(tmp_path, "multi", **settings, mixup_prob=1.0 if kind != "neither" else 0.0)
    else:
        theirs, ours = pair_of_1(tmp_path, {}, **settings, mixup_prob=1.0 if kind != "neither" else 0.0)
    assert ours.mixing.classes == CLASSES and ours.mixing.label_smoothing == 0.2
    assert theirs.mixup_fn.settings[:2] == (ours.mixing.mixup, ours.mixing.cutmix)
    images, labels, ids = torch.randn(4, 3, SIZE, SIZE), torch.randint(0, CLASSES, (4,)), [7, 3, 9, 1]
    for epoch in range(1, 6):
        share, boxes, cut = ours.mixing.draw(1, epoch, ids, SIZE, SIZE)
        assert cut.all() == (kind == "cutmix") and (share == 1).all() == (kind == "neither" or share[0] == 1)
        theirs.mixup_fn.share = float(share[0])
        theirs.mixup_fn.box = boxes[0].tolist() if kind == "cutmix" else None
        expected = theirs.train()(images, labels)["losses"]["regression"]
        found = ours.train()(*ours.mixing(images, labels, 1, epoch, ids))["losses"]["regression"]
        assert found.shape == expected.shape == (4, CLASSES) and relative(found, expected) < 1e-5
