"""1.0 for images apart from parity: its masks, what a step reads, what fine-tuning keeps, and settings that fail."""

import dataclasses
import inspect

import pytest
import torch
import upstream
from on_device import OnDevice
from tiny_vision import build, images, masks, tiny

from d2v_plugin.criterions.d2v_regression import D2vRegressionCriterion
from d2v_plugin.errors import UserError
from d2v_plugin.method.collapse import CollapseError
from d2v_plugin.models.data2vec_vision import Data2VecVisionModel
from d2v_plugin.models.data2vec_vision_config import Data2VecVisionConfig

# -- what published files rely on -------------------------------------------------------------------


def default_of(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def test_every_upstream_field_keeps_its_default():
    theirs = dataclasses.fields(upstream.load("data2vec_vision").Data2VecVisionConfig)
    ours = {field.name: field for field in dataclasses.fields(Data2VecVisionConfig)}
    assert len(theirs) > 25
    for field in theirs:
        assert default_of(ours[field.name]) == default_of(field), field.name


def test_forward_takes_what_upstream_takes():
    theirs = upstream.load("data2vec_vision").Data2VecVisionModel
    for method in ("forward", "remove_pretraining_modules"):
        expected, found = (inspect.signature(getattr(m, method)).parameters for m in (theirs, Data2VecVisionModel))
        assert list(found)[: len(expected)] == list(expected)
        for name, parameter in expected.items():
            assert found[name].default == parameter.default, (method, name)


def test_initial_weights_are_those_of_beit():
    torch.manual_seed(0)
    model = build(embed_dim=192, layer_scale_init_value=0.5).requires_grad_(False)
    assert abs(float(model.patch_embed.conv.weight.std()) - 0.02) < 1e-3
    assert abs(float(model.encoder.blocks[0].attn.qkv.weight.std()) - 0.02) < 1e-3
    for n, block in enumerate(model.encoder.blocks, 1):
        for weight in (block.attn.proj.weight, block.mlp[2].weight):
            assert float(weight.std()) == pytest.approx(0.02 / (2 * n) ** 0.5, rel=0.03)
        assert block.gamma_1.eq(0.5).all() and block.gamma_2.eq(0.5).all()
    for token in (model.cls_emb, model.mask_emb):
        assert abs(float(token.mean())) < 5e-3 and abs(float(token.std()) - 0.02) < 4e-3


def test_stochastic_depth_grows_from_0():
    assert [block.drop_path.p for block in build(drop_path=0.3).encoder.blocks] == pytest.approx([0, 0.15, 0.3])


def test_vectors_and_the_class_token_ask_for_no_weight_decay():
    spared = {
        name
        for name, parameter in build(shared_rel_pos_bias=False).named_parameters()
        if getattr(parameter, "optim_overrides", None) == {"optimizer": {"weight_decay_scale": 0}}
    }
    names = {name for name, parameter in build(shared_rel_pos_bias=False).named_parameters() if parameter.dim() == 1}
    assert spared == names | {"cls_emb"}
    assert {"encoder.blocks.0.attn.q_bias", "encoder.blocks.0.gamma_1", "encoder.norm.weight"} < spared


# -- masks ------------------------------------------------------------------------------------------


def seen_masks(model, monkeypatch):
    found = []
    draw = type(model.masks).draw
    monkeypatch.setattr(type(model.masks), "draw", lambda self, draws: found.append(draw(self, draws)) or found[-1])
    return found


def test_masks_of_its_own_change_with_the_update_and_repeat(monkeypatch):
    model = tiny()
    drawn = seen_masks(model, monkeypatch)
    for seed in (1, 2, 3):  # fairseq seeds every update
        torch.manual_seed(seed)
        out = model(images())
        assert out["sample_size"] == int(drawn[-1].sum())
        assert out["masked_pct"] == pytest.approx(float(drawn[-1].float().mean()))
    torch.manual_seed(1)
    torch.rand(7)  # what else consumed random numbers does not matter
    model(images())
    assert torch.equal(drawn[3], drawn[0]) and not torch.equal(drawn[1], drawn[0])


def test_masked_patches_are_hidden_and_their_rows_weigh_alike():
    model = tiny().eval()
    img, mask = images(), masks()
    changed = img.clone()
    hidden = mask.view(3, 6, 1, 6, 1).expand(-1, -1, 4, -1, 4).reshape(3, 1, 24, 24)
    changed = torch.where(hidden, torch.randn_like(img), img)
    with torch.no_grad():
        a, b = (model(x, mask_indices=mask, layer_results=True)[-1] for x in (img, changed))
        assert torch.equal(a, b)
        assert not torch.allclose(model(img, mask=False), model(changed, mask=False))
        # rows of different counts: the loss is the sum over all masked patches
        whole = model(img, mask_indices=mask)
        parts = [model(img[b : b + 1], mask_indices=mask[b : b + 1]) for b in range(3)]
    assert mask.sum(1).tolist() == [12, 15, 18] == [part["sample_size"] for part in parts]
    total = sum(part["losses"]["regression"] for part in parts)
    torch.testing.assert_close(whole["losses"]["regression"], total, rtol=1e-5, atol=0)


def test_a_mask_that_is_not_for_these_images():
    with pytest.raises(UserError, match=r"mask_indices must be \(3, 36\), images by patches, got \(3, 25\)"):
        tiny()(images(), mask_indices=torch.ones(3, 25, dtype=torch.bool))


# -- a step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
def test_a_step_outside_the_watch_interval_reads_nothing(given):
    model = tiny(watch_interval=100, drop_path=0.2).train()
    model.set_num_updates(1)
    net_input = {"img": images().as_subclass(OnDevice)}
    if given:
        mask = masks()
        rows = mask.flatten().nonzero().squeeze(1)
        net_input |= {"mask_indices": mask.as_subclass(OnDevice), "masked_rows": rows.as_subclass(OnDevice)}
    loss, size, logs = D2vRegressionCriterion(None)(model, {"id": torch.arange(3), "net_input": net_input})
    assert isinstance(loss, OnDevice) and isinstance(logs["target_var"], OnDevice) and isinstance(size, int)
    loss.backward()


def test_training_with_everything_random_reaches_every_weight():
    model = tiny(drop_path=0.3, attention_dropout=0.1, project_predictions=True, layer_norm_targets=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    start, losses = {n: p.detach().clone() for n, p in model.named_parameters()}, []
    img = images(8)
    for update in range(1, 31):
        torch.manual_seed(update)
        model.set_num_updates(update)
        out = model(img)
        loss = out["losses"]["regression"] / out["sample_size"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert [n for n, p in model.named_parameters() if torch.equal(p, start[n])] == []


def test_project_predictions_sends_them_through_final_proj():
    model = tiny(project_predictions=True).eval()
    img, mask = images(), masks()
    with torch.no_grad():
        x, layers = (
            model(img, mask_indices=mask, layer_results=True)[-1],
            model._teacher_layers(img, model.patch_embed(img)),
        )
        expected = model.final_proj(model.encoder.norm(x))[mask]
        targets = (sum(layers) / len(layers))[mask]
        loss = model(img, mask_indices=mask)["losses"]["regression"]
    torch.testing.assert_close(loss, (expected - targets).square().sum() / 48**0.5, rtol=1e-4, atol=0)


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("distributed", [False, True])
def test_distributed_training_finds_a_gradient_for_every_parameter(monkeypatch, project, distributed):
    """DDP without find_unused_parameters stops at the second step where a parameter goes without."""
    model = tiny(project_predictions=project, watch_interval=100).train()
    model.set_num_updates(1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: distributed)
    model(images(), mask_indices=masks())["losses"]["regression"].backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == (set() if project or distributed else {"final_proj.weight", "final_proj.bias"})
    if not without:
        assert model.final_proj.weight.grad.any() == project


def test_half_precision_keeps_an_fp32_teacher():
    model = tiny(ema_transformer_only=False).to(torch.bfloat16).train()
    model.set_num_updates(1)
    out = model(images().to(torch.bfloat16), mask_indices=masks())
    out["losses"]["regression"].backward()
    assert out["losses"]["regression"].isfinite()
    assert model.ema.dtype == torch.bfloat16
    assert model.state_dict()["_ema"]["encoder.blocks.0.mlp.0.weight"].dtype == torch.float32


def test_the_watch_logs_three_places_and_stops_what_collapsed():
    model = tiny(watch_interval=1, collapse_guard_updates=3, min_pred_var=0.05).train()
    logs = model(images())["logs"]
    assert set(logs) == {f"{place}_{what}" for place in ("feature", "student", "teacher") for what in ("std", "rank")}
    with torch.no_grad():
        model.encoder.norm.weight.zero_()
    model.num_updates = 4
    with pytest.raises(CollapseError, match="predictions hardly vary"):
        model(images())


# -- after pre-training -----------------------------------------------------------------------------


def test_what_fine_tuning_keeps():
    model = tiny().eval()
    img = images()
    with torch.no_grad():
        expected = model(img, mask=False, layer_results=True)
    model.remove_pretraining_modules()
    assert not any(k.startswith(("final_proj", "mask_emb", "_ema", "encoder.norm")) for k in model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(img, mask=False), expected[-1])
        assert torch.equal(model.extract_features(img), expected[-1])
    with pytest.raises(UserError, match="mask=False"):
        model(img)


def test_up_to_a_block():
    model = tiny().eval()
    img = images()
    with torch.no_grad():
        expected = model(img, mask=False, layer_results=True)[1]
    model.remove_pretraining_modules(last_layer=1)
    assert len(model.encoder.blocks) == 2
    with torch.no_grad():
        assert torch.equal(model(img, mask=False), expected)


def test_a_model_without_a_teacher():
    with pytest.raises(UserError, match="no teacher"):
        build()(images())


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 26}, "image_size 26 is not a multiple of patch_size 4"),
        ({"patch_size": 0}, "model.patch_size must be at least 1, got 0"),
        ({"num_mask_patches": 36}, "num_mask_patches=36 must be at least 1 and below 36, the image's 6 x 6 patches"),
        ({"num_mask_patches": 75}, "num_mask_patches=75 must be at least 1 and below 36"),
        ({"min_mask_patches_per_block": 40}, "min_mask_patches_per_block=40 must be at least 1 and at most"),
        ({"min_mask_patches_per_block": 21}, "min_mask_patches_per_block=21 is more than model.num_mask_patches=20"),
        (
            {"min_mask_patches_per_block": 26, "num_mask_patches": 30},
            "min_mask_patches_per_block=26: no block of so many patches fits",
        ),
        ({"average_top_k_layers": 4}, "average_top_k_layers 4 must lie between 1 and depth, which is 3"),
        ({"average_top_k_layers": 0}, "average_top_k_layers 0"),
        ({"num_heads": 5}, "embed_dim 48 is not a multiple of num_heads 5"),
        ({"drop_path": 1.0}, "model.drop_path must be at least 0 and below 1, got 1.0"),
        ({"attention_dropout": -0.1}, "model.attention_dropout"),
        ({"layer_scale_init_value": -1.0}, "model.layer_scale_init_value"),
        ({"ema_decay": 1.1}, "model.ema_decay"),
    ],
)
def test_settings_that_cannot_work(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        build(**overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 32, 32), "set task.input_size to the model's image_size"),
        ((2, 1, 24, 24), "set in_channels to 1"),
    ],
)
def test_images_of_another_shape(shape, message):
    with pytest.raises(UserError, match=message):
        build()(torch.randn(shape), mask=False)
