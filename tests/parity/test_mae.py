"""MAE against upstream: same weights, images and masks give the same loss and gradients."""

import pytest
import torch
import upstream

from d2v_plugin.errors import UserError
from d2v_plugin.models.mae import MaeConfig, MaeModel

TINY = {
    "input_size": 24,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 4,
    "decoder_embed_dim": 32,
    "decoder_depth": 2,
    "decoder_num_heads": 4,
    "seed": 1,
}


def pair(**overrides):
    module = upstream.load_v2("models.mae")
    torch.manual_seed(1)
    settings = {**TINY, **overrides}
    theirs_settings = {k: v for k, v in settings.items() if k != "seed"}
    with upstream.current_stack():
        theirs = module.MaeModel(module.MaeConfig(**theirs_settings))
    ours = MaeModel(MaeConfig(**settings))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key in ("pos_embed", "decoder_pos_embed"):
        assert torch.allclose(ours.state_dict()[key], theirs.state_dict()[key], atol=1e-6)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs.eval(), ours.eval()


def relative(a, b):
    return float(((a - b).norm() / b.norm().clamp(min=1e-12)).detach())


@pytest.mark.parametrize("overrides", [{}, {"norm_pix_loss": False, "mask_ratio": 0.5}], ids=str)
def test_loss_and_every_gradient(overrides):
    theirs, ours = pair(**overrides)
    images = torch.randn(3, 3, 24, 24)
    with torch.no_grad():
        expected, out = theirs(images, predictions_only=True), ours(images, predictions_only=True)
    assert relative(out, expected) < 1e-5

    drawn = {}
    masking = theirs.random_masking
    theirs.random_masking = lambda x, ratio: drawn.setdefault("all", masking(x, ratio))
    expected = theirs(images)
    out = ours(images, precomputed_mask=drawn["all"][1])
    assert out["sample_size"] == int(expected["sample_size"])
    assert relative(out["losses"]["regression"], expected["losses"]["regression"]) < 1e-5
    for result in (expected, out):
        (result["losses"]["regression"] * 0.37).backward()
    grads = dict(ours.named_parameters())
    compared = 0
    for name, parameter in theirs.named_parameters():
        assert getattr(grads[name], "param_group", None) == parameter.param_group
        if parameter.grad is not None:
            assert relative(grads[name].grad, parameter.grad) < 1e-5, name
            compared += 1
    assert compared > 40


def test_masks_of_its_own_and_features():
    model = MaeModel(MaeConfig(**TINY))
    images = torch.randn(4, 3, 24, 24)
    out = model(images, id=torch.arange(4))
    assert out["sample_size"] == 4 * 27  # 3 quarters of 36 patches
    assert model(images)["losses"]["regression"].isfinite()
    model.remove_pretraining_modules()
    assert model(images, predictions_only=True).shape == (4, 37, 48)
    assert not any("decoder" in name for name in model.state_dict())


NOT_UPSTREAM = ({"no_cls": True}, {"mask_noise_std": 0.02}, {"no_decoder_pos_embed": True})


@pytest.mark.parametrize("setting", NOT_UPSTREAM, ids=str)
def test_settings_that_fail_upstream(setting):
    model = MaeModel(MaeConfig(**{**TINY, **setting}))
    loss = model(torch.randn(2, 3, 24, 24))["losses"]["regression"]
    loss.backward()
    assert loss.isfinite()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"w2v_block": True}, "w2v_block"),
        ({"alt_block": True}, "alt_block"),
        ({"use_rel_pos_bias": True}, "use_rel_pos_bias"),
        ({"input_size": 25}, "not a multiple of patch_size"),
        ({"num_heads": 5}, "num_heads 5"),
        ({"decoder_num_heads": 5}, "decoder_num_heads 5"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
    ],
)
def test_settings_that_cannot_work(overrides, message):
    with pytest.raises(UserError, match=message):
        MaeModel(MaeConfig(**{**TINY, **overrides}))


def test_images_of_another_size():
    with pytest.raises(UserError, match="task.input_size"):
        MaeModel(MaeConfig(**TINY))(torch.randn(1, 3, 32, 32))


def test_stochastic_depth_mask_noise_and_the_last_norm():
    images = torch.randn(2, 3, 24, 24)
    model = MaeModel(MaeConfig(**{**TINY, "drop_path_rate": 0.9})).train()
    assert len({float(model(images, id=torch.arange(2))["losses"]["regression"].detach()) for _ in range(6)}) > 1

    model = MaeModel(MaeConfig(**{**TINY, "mask_noise_std": 0.3}))
    seen = []
    model.decoder_blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    mask = torch.arange(36).expand(2, -1) >= 9
    model(images, precomputed_mask=mask)
    noise = (seen[0] - model.decoder_pos_embed)[:, 1:][mask]
    assert abs(float(noise.std()) - 0.3) < 0.02

    model = MaeModel(MaeConfig(**{**TINY, "layer_norm_first": True}))
    model.remove_pretraining_modules()
    assert model.norm is None
