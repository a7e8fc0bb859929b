"""2.0 against upstream: same weights, inputs and masks give the same features, targets, losses and gradients."""

import numpy as np
import pytest
import torch
import upstream
from fairseq.dataclass.utils import merge_with_parent
from tiny_multi import MODALITIES, batch, build, frames, random_masks, root_config, text_task

NO_PRENET, DEEP_PRENET = {"prenet_depth": 0}, {"prenet_depth": 2}
SCOPES = [
    {"ema_encoder_only": True},
    {"ema_encoder_only": False, "ema_local_encoder": False},
    {"ema_encoder_only": False, "ema_local_encoder": True},
]


@pytest.fixture(autouse=True)
def _ties_in_order(monkeypatch):
    """Upstream sorts masks without asking for a stable sort, so kept positions come in any order; here in theirs."""
    monkeypatch.setattr(torch.Tensor, "argsort", lambda self, dim: torch.argsort(self, dim=dim, stable=True))


def oracle(root):
    module = upstream.load_v2("models.data2vec2")
    with upstream.current_stack():
        cfg = merge_with_parent(module.Data2VecMultiConfig(), root.model)
        task = None if root.model.supported_modality in ("AUDIO", "IMAGE") else text_task()
        return module.Data2VecMultiModel.build_model(cfg, task)


def pair(modality, every=None, **overrides):
    """(upstream's model, ours) with the same weights, none of them as initialised, and a teacher of its own."""
    root = root_config(modality, every, **overrides)
    torch.manual_seed(1)
    theirs, ours = oracle(root), build(root)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter)) if parameter.requires_grad else None
        theirs.ema.restore(
            {k: v + 0.05 * torch.randn_like(v) for k, v in theirs.ema.fp32_params.items()}, build_fp32_params=True
        )
    ours.load_state_dict(theirs.state_dict())
    theirs.set_num_updates(0), ours.set_num_updates(0)
    return theirs.eval(), ours.eval()


def scoped(scope):
    every = {k: v for k, v in scope.items() if k == "ema_local_encoder"}
    return every, {k: v for k, v in scope.items() if k not in every}


def relative(a, b):
    return float(((a - b).norm() / b.norm().clamp(min=1e-12)).detach())


def step(model, source, padding_mask, mask, **more):
    """``(output, gradients)`` of the sum of all losses, scaled as fp16 training scales it."""
    out = model(source, padding_mask=padding_mask, precomputed_mask=mask.clone(), **more)
    model.zero_grad()
    (sum(loss.float().sum() for loss in out["losses"].values()) * 0.37).backward()
    return out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same_step(theirs, ours, modality, padded=False, **more):
    source, padding_mask = batch(modality, padded=padded)
    mask = random_masks(len(source) * theirs.cfg.clone_batch, frames(ours, modality, source))
    expected, expected_grads = step(theirs, source, padding_mask, mask, **more)
    out, grads = step(ours, source, padding_mask, mask, **more)
    assert out["sample_size"] == int(expected["sample_size"]) == int(mask.sum())
    assert list(out["losses"]) == list(expected["losses"])
    for name, loss in expected["losses"].items():
        assert relative(out["losses"][name], loss.sum()) < 1e-5, name
    for key in expected.keys() - {"losses", "sample_size"}:
        assert float(out[key]) == pytest.approx(float(expected[key]), rel=1e-5), key
    assert grads.keys() == expected_grads.keys()
    whole = torch.cat([g.flatten() for g in expected_grads.values()]).norm()
    for name, grad in expected_grads.items():
        if grad.norm() < 1e-6 * whole:
            assert grads[name].norm() < 1e-5 * whole, name
            assert name in ("recon_proj.weight",) or "extra_tokens" in name or "alibi" in name, name
        else:
            assert relative(grads[name], grad) < 1e-5, (name, relative(grads[name], grad))
    return out


def assert_same_features(theirs, ours, modality, padded, **more):
    source, padding_mask = batch(modality, padded=padded)
    with torch.no_grad():
        expected = theirs(source, padding_mask=padding_mask, features_only=True, **more)
        out = ours(source, padding_mask=padding_mask, features_only=True, **more)
    assert relative(out["x"], expected["x"]) < 1e-5
    assert (out["padding_mask"] is None) == (expected["padding_mask"] is None)
    if padded:
        assert torch.equal(out["padding_mask"], expected["padding_mask"])
    for ours_layer, theirs_layer in zip(out["layer_results"], expected["layer_results"], strict=True):
        assert relative(ours_layer, theirs_layer) < 1e-5


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("every", [NO_PRENET, DEEP_PRENET, {"num_extra_tokens": 2}], ids=str)
@pytest.mark.parametrize("layer_norm_first", [False, True])
@pytest.mark.parametrize("modality", MODALITIES)
def test_features_losses_and_every_gradient(modality, layer_norm_first, every, padded):
    if modality == "IMAGE" and padded:
        padded = False
    theirs, ours = pair(modality, every, layer_norm_first=layer_norm_first)
    assert_same_features(theirs, ours, modality, padded, mask=False)
    assert_same_features(theirs, ours, modality, padded, mask=False, remove_extra_tokens=False)
    assert_same_step(theirs, ours, modality, padded)


@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("layer_norm_first", [False, True])
@pytest.mark.parametrize("modality", MODALITIES)
def test_teacher_scopes(modality, layer_norm_first, scope):
    if modality == "TEXT" and scope.get("ema_local_encoder"):
        # Upstream casts the tokens to the teacher's float dtype there, which an embedding cannot read.
        scope = {"ema_encoder_only": True, "ema_local_encoder": True}
    every, overrides = scoped(scope)
    theirs, ours = pair(modality, every, layer_norm_first=layer_norm_first, **overrides)
    assert list(ours.ema.state_dict()) == list(theirs.ema.fp32_params)
    assert_same_step(theirs, ours, modality, padded=modality != "IMAGE")


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"layer_norm_targets": True},
        {"end_of_block_targets": True, "average_top_k_layers": 3},
        {"instance_norm_target_layer": False, "layer_norm_target_layer": True, "instance_norm_targets": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("modality", MODALITIES)
def test_targets_value_by_value(modality, overrides):
    theirs, ours = pair(modality, {"num_extra_tokens": 1}, ema_encoder_only=False, **overrides)
    found = []
    for model, name in ((theirs, "make_targets"), (ours, "_targets")):
        make = getattr(model, name)
        setattr(model, name, lambda *args, make=make: found.append(make(*args)) or found[-1])
    source, padding_mask = batch(modality, padded=modality != "IMAGE")
    mask = random_masks(2 * len(source), frames(ours, modality, source))
    for model in (theirs, ours):
        model(source, padding_mask=padding_mask, precomputed_mask=mask.clone())
    expected, out = found
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("clones", [1, 3])
@pytest.mark.parametrize("modality", MODALITIES)
def test_masks_per_sample(modality, clones):
    theirs, ours = pair(modality, clone_batch=clones)
    assert_same_step(theirs, ours, modality, padded=modality == "AUDIO")


SCALES = {
    "fixed": {},
    "global": {"learned_alibi_scale": True},
    "per head": {"learned_alibi_scale": True, "learned_alibi_scale_per_head": True},
    "per layer": {"learned_alibi_scale": True, "learned_alibi_scale_per_layer": True},
    "per head and layer": {
        "learned_alibi_scale": True,
        "learned_alibi_scale_per_head": True,
        "learned_alibi_scale_per_layer": True,
    },
}


@pytest.mark.parametrize("prenet_depth", [0, 2])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("modality", MODALITIES)
def test_alibi_of_kept_positions(modality, scale, prenet_depth):
    every = {"use_alibi_encoder": True, "alibi_scale": 0.7, "prenet_depth": prenet_depth, **SCALES[scale]}
    theirs, ours = pair(modality, every, ema_encoder_only=False)
    assert_same_features(theirs, ours, modality, padded=modality != "IMAGE", mask=False)
    assert_same_step(theirs, ours, modality, padded=modality != "IMAGE")


@pytest.mark.parametrize(
    "more",
    [
        {"alibi_distance": "euclidean"},
        {"alibi_dims": 1},
        {"num_extra_tokens": 1},
        {"num_alibi_heads": 2, "learned_alibi_scale_per_head": True},
    ],
    ids=str,
)
def test_alibi_of_images(more):
    theirs, ours = pair("IMAGE", modalities__image={**root_image(), "use_alibi_encoder": True, **more})
    assert_same_features(theirs, ours, "IMAGE", False, mask=False)
    assert_same_step(theirs, ours, "IMAGE")


def root_image():
    return dict(root_config("IMAGE").model.modalities.image)


CROSS = {"modalities__image__transformer_decoder": True, "modalities__image__enc_dec_transformer": True}


@pytest.mark.parametrize(
    "overrides",
    [
        {"cls_loss": 0.3, "modalities__image__num_extra_tokens": 1, "modalities__image__init_extra_token_zero": False},
        {"cls_loss": 0.3, "modalities__image__num_extra_tokens": 3, "loss_beta": 0.5},
        {"recon_loss": 0.6},
        {"recon_loss": 0.6, "cls_loss": 0.1, "modalities__image__num_extra_tokens": 1, "d2v_loss": 0},
        {"recon_loss": 0.6, "shared_decoder": {"decoder_dim": 32, "decoder_groups": 4, "input_dropout": 0.0}},
        {"modalities__image__transformer_decoder": True, "modalities__image__decoder__decoder_dim": 16},
        CROSS,
        {**CROSS, "modalities__image__decoder__add_positions_all": True, "modalities__image__decoder__decoder_dim": 16},
        {"modalities__image__decoder__add_positions_masked": True},
        {"modalities__image__decoder__add_positions_all": True},
        {"modalities__image__decoder__decoder_kernel": 4},
        {"modalities__image__fixed_positions": False},
        {"modalities__image__embed_dim": 20},
    ],
    ids=str,
)
def test_image_losses_and_decoders(overrides):
    theirs, ours = pair("IMAGE", **overrides)
    assert_same_step(theirs, ours, "IMAGE")


@pytest.mark.parametrize("modality", ["AUDIO", "TEXT"])
@pytest.mark.parametrize(
    "decoder",
    [
        {"decoder_residual": False, "projection_layers": 2, "projection_ratio": 1.5},
        {"projection_layers": 3, "decoder_dim": 48},
        {"decoder_kernel": 4, "decoder_layers": 3},
    ],
    ids=str,
)
def test_sequence_decoders(modality, decoder):
    every = {"decoder": {**dict(root_config(modality).model.modalities.text.decoder), **decoder}}
    theirs, ours = pair(modality, every)
    assert_same_step(theirs, ours, modality)


@pytest.mark.parametrize(
    "overrides",
    [
        {"loss_beta": 0.25},
        {"loss_scale": 0.5},
        {"end_of_block_targets": True},
        {"norm_affine": False},
        {"average_top_k_layers": 3, "layer_norm_targets": True},
        {"average_top_k_layers": 1, "instance_norm_target_layer": False, "layer_norm_target_layer": True},
        {"instance_norm_targets": True, "layer_norm_targets": True},
        {"batch_norm_target_layer": True, "layer_norm_target_layer": True, "instance_norm_targets": True},
        {"shared_decoder": {"decoder_dim": 32, "decoder_groups": 4, "input_dropout": 0.0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("modality", MODALITIES)
def test_losses_and_targets(modality, overrides):
    theirs, ours = pair(modality, **overrides)
    assert_same_step(theirs, ours, modality)


@pytest.mark.parametrize(
    "audio",
    [
        {"extractor_mode": "default"},
        {"conv_pos_pre_ln": True},
        {"conv_pos_width": 20, "conv_pos_depth": 5},
        {"local_grad_mult": 0.1},
        {"local_grad_mult": 0.0},
    ],
    ids=str,
)
def test_audio_settings(audio):
    theirs, ours = pair("AUDIO", **{f"modalities__audio__{k}": v for k, v in audio.items()})
    assert_same_step(theirs, ours, "AUDIO", padded=True)


@pytest.mark.parametrize(
    "text",
    [
        {"learned_pos": False},
        {"no_token_positional_embeddings": True},
        {"no_scale_embedding": False, "layernorm_embedding": False},
    ],
    ids=str,
)
def test_text_settings(text):
    theirs, ours = pair("TEXT", **{f"modalities__text__{k}": v for k, v in text.items()})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same_step(theirs, ours, "TEXT", padded=True)


@pytest.mark.parametrize("remove", [False, True])
@pytest.mark.parametrize("every", [{"use_alibi_encoder": True}, {"encoder_zero_mask": False}], ids=str)
@pytest.mark.parametrize("modality", MODALITIES)
def test_features_of_masked_input(modality, every, remove):
    theirs, ours = pair(modality, every)
    source, padding_mask = batch(modality)
    mask = random_masks(len(source), frames(ours, modality, source))
    more = {"features_only": True, "precomputed_mask": mask, "force_remove_masked": remove}
    with torch.no_grad():  # upstream overwrites what its gradient needs with encoder_zero_mask off
        expected, out = theirs(source, **more), ours(source, **more)
    assert relative(out["x"], expected["x"]) < 1e-5
    assert torch.equal(out["mask"].mask, expected["mask"].mask.bool())


def test_a_target_of_its_own():
    theirs, ours = pair("IMAGE", {"ema_local_encoder": True}, ema_encoder_only=False)
    target = torch.randn(3, 3, 24, 24)
    with_target = assert_same_step(theirs, ours, "IMAGE", target=target)
    torch.manual_seed(0)
    assert with_target["losses"].keys() == {"IMAGE_regression"}


def test_all_modalities_in_one_model():
    theirs, ours = pair(None)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for modality in MODALITIES:
        out = assert_same_step(theirs, ours, modality, mode=modality)
        assert f"target_var_{modality}" in out


def train(model, modality, source, mask, updates):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    model.train()
    for update in range(1, updates + 1):
        loss = sum(v.sum() for v in model(source, precomputed_mask=mask)["losses"].values()) / int(mask.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.set_num_updates(update)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("modality", MODALITIES)
def test_losses_over_20_optimiser_steps(modality):
    theirs, ours = pair(modality, {"use_alibi_encoder": True, "learned_alibi_scale": True}, ema_encoder_only=False)
    source, _ = batch(modality)
    mask = random_masks(2 * len(source), frames(ours, modality, source))
    expected = train(theirs, modality, source, mask, 20)
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(train(ours, modality, source, mask, 20), expected, rtol=1e-4)


@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("modality", MODALITIES)
def test_ema_after_50_updates_with_annealing_and_a_resume(modality, scope):
    every, overrides = scoped(scope)
    theirs, ours = pair(modality, every, **overrides)
    theirs.train(), ours.train()
    for update in range(1, 51):
        with torch.no_grad():
            for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
                change = 0.01 * torch.randn_like(a)
                a.add_(change), b.add_(change)
        if update == 25:
            # Both count from 0 again after loading; the jump to the saved update moves no teacher.
            state = {k: v.clone() if torch.is_tensor(v) else dict(v) for k, v in ours.state_dict().items()}
            theirs.num_updates = ours.num_updates = 0
            ours.load_state_dict(state)
            theirs.set_num_updates(update - 1), ours.set_num_updates(update - 1)
        for _ in range(2):  # micro-batches of one update
            theirs.set_num_updates(update), ours.set_num_updates(update)
        assert ours.ema.decay == pytest.approx(theirs.ema.get_decay(), abs=1e-12)
    assert ours.ema.fp32.keys() == theirs.ema.fp32_params.keys()
    running, moved = ours.ema.model.state_dict(), 0
    for name, value in theirs.ema.fp32_params.items():
        assert relative(ours.ema.fp32[name], value) < 1e-6, name
        assert relative(running[name], value) < 1e-6, name
        moved += name in running
    assert moved > 10


@pytest.mark.parametrize("modality", [*MODALITIES, None])
@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_state_dict_round_trip_both_ways(modality, scope):
    every, overrides = scoped(scope)
    theirs, ours = pair(
        modality, {**every, "use_alibi_encoder": True, "num_extra_tokens": 1}, decoder_group=True, **overrides
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert getattr(a, "optim_overrides", None) == getattr(b, "optim_overrides", None)
        assert getattr(a, "param_group", None) == getattr(b, "param_group", None)
    with torch.no_grad():
        for p in [*ours.parameters(), *ours.ema.fp32.values()]:
            p.add_(0.1 * torch.randn_like(p))
    theirs.load_state_dict(ours.state_dict())
    modality = modality or "IMAGE"
    if modality != "TEXT" or not scope.get("ema_local_encoder"):
        assert_same_step(theirs, ours, modality, mode=modality)
