"""1.0 audio against upstream: same weights, inputs and masks give the same numbers and gradients."""

import itertools

import numpy as np
import pytest
import torch
import upstream
from fairseq.criterions.model_criterion import ModelCriterion

from d2v_plugin.models.data2vec_audio import Data2VecAudioConfig, Data2VecAudioModel

TINY = {
    "encoder_layers": 3,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(16, 10, 5)] + [(16, 3, 2)] * 2 + [(16, 2, 2)]",
    "conv_pos": 19,
    "conv_pos_groups": 4,
    "pos_conv_depth": 3,
    "average_top_k_layers": 2,
    "instance_norm_target_layer": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "required_seq_len_multiple": 1,
    "ema_decay": 0.9,
    "ema_end_decay": 0.99,
    "ema_anneal_end_step": 30,
    "max_update": 100,
}

LAYERS, TRANSFORMER = {}, {"ema_layers_only": False}
# A teacher of the whole model makes upstream average all layers whatever K says; ours averages K, so K is all here.
WHOLE = {"ema_layers_only": False, "ema_transformer_only": False, "average_top_k_layers": 3}


def pair(**overrides):
    """(upstream's model, ours) with the same weights and a teacher that differs from the student."""
    oracle_module = upstream.load("data2vec_audio")
    settings = {**TINY, **overrides}
    torch.manual_seed(1)
    theirs = oracle_module.Data2VecAudioModel(oracle_module.Data2VecAudioConfig(**settings))
    ours = Data2VecAudioModel(Data2VecAudioConfig(**settings))
    theirs.set_num_updates(0)
    ours.set_num_updates(0)
    with torch.no_grad():
        for name, value in theirs.ema.fp32_params.items():
            if name not in theirs.ema.skip_keys:
                value.add_(0.05 * torch.randn_like(value))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def batch(B=3, samples=1600, padded=False):
    source = torch.randn(B, samples)
    padding_mask = None
    if padded:
        padding_mask = torch.zeros(B, samples, dtype=torch.bool)
        for b, valid in enumerate((samples, samples - 333, samples - 800)[:B]):
            padding_mask[b, valid:] = True
            source[b, valid:] = 0
    return source, padding_mask


def masks(model, source, padding_mask):
    with torch.no_grad():
        features = model.extract_features(source, padding_mask)
    B, T = features["x"].shape[:2]
    mask = torch.rand(B, T) < 0.5
    mask[:, 0] = True
    mask[:, 1] = False
    if features["padding_mask"] is not None:
        mask &= ~features["padding_mask"]
    return mask


def loss_and_grads(model, source, padding_mask, mask):
    out = model(source=source, padding_mask=padding_mask, mask_indices=mask.clone())
    model.zero_grad()
    (out["losses"]["regression"] * 0.37).backward()
    return out, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def relative(a, b):
    return float(((a - b).norm() / b.norm().clamp(min=1e-12)).detach())


def assert_same_step(theirs, ours, source, padding_mask, mask):
    expected, expected_grads = loss_and_grads(theirs, source, padding_mask, mask)
    out, grads = loss_and_grads(ours, source, padding_mask, mask)
    assert out["sample_size"] == expected["sample_size"]
    for key in ("target_var", "pred_var"):
        assert relative(out[key], expected[key]) < 1e-5, key
    assert relative(out["losses"]["regression"], expected["losses"]["regression"]) < 1e-5
    assert grads.keys() == expected_grads.keys()
    whole = torch.cat([g.flatten() for g in expected_grads.values()]).norm()
    for name, grad in expected_grads.items():
        if grad.norm() < 1e-6 * whole:
            # Softmax and instance norm do not see a constant added to their inputs: gradients of the biases of
            # k_proj, and of a convolution before a norm over time, are 0 but for rounding.
            assert name.endswith(("k_proj.bias", "conv_layers.0.0.bias")) or "pos_conv" in name, name
            assert max(grads[name].norm(), grad.norm()) < 1e-5 * whole, name
        else:
            assert relative(grads[name], grad) < 1e-5, (name, relative(grads[name], grad))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("extractor_mode", ["default", "layer_norm"])
@pytest.mark.parametrize("layer_norm_first", [False, True])
@pytest.mark.parametrize("loss_beta", [0.0, 0.25])
def test_features_loss_and_every_gradient(extractor_mode, layer_norm_first, loss_beta, padded):
    theirs, ours = pair(extractor_mode=extractor_mode, layer_norm_first=layer_norm_first, loss_beta=loss_beta)
    theirs.eval(), ours.eval()
    source, padding_mask = batch(padded=padded)
    expected = theirs.extract_features(source, padding_mask)
    out = ours.extract_features(source, padding_mask)
    assert relative(out["x"], expected["x"]) < 1e-5
    assert (out["padding_mask"] is None) == (expected["padding_mask"] is None)
    if padded:
        assert torch.equal(out["padding_mask"], expected["padding_mask"])
    for ours_layer, theirs_layer in zip(out["layer_results"], expected["layer_results"], strict=True):
        assert relative(ours_layer[0], theirs_layer[0]) < 1e-5
        assert relative(ours_layer[2], theirs_layer[2]) < 1e-5
    assert_same_step(theirs, ours, source, padding_mask, masks(ours, source, padding_mask))


FLAGS = (
    "instance_norm_target_layer",
    "batch_norm_target_layer",
    "group_norm_target_layer",
    "layer_norm_target_layer",
    "layer_norm_targets",
    "instance_norm_targets",
)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("flags", [c for n in range(4) for c in itertools.combinations(FLAGS, n)], ids="+".join)
def test_every_target_normalisation(flags, padded):
    theirs, ours = pair(**{f: f in flags for f in FLAGS})
    theirs.eval(), ours.eval()
    source, padding_mask = batch(padded=padded)
    mask = masks(ours, source, padding_mask)
    with torch.no_grad():
        expected = theirs(source=source, padding_mask=padding_mask, mask_indices=mask.clone())
        out = ours(source=source, padding_mask=padding_mask, mask_indices=mask)
    assert relative(out["target_var"], expected["target_var"]) < 1e-5
    assert relative(out["losses"]["regression"], expected["losses"]["regression"]) < 1e-5


@pytest.mark.parametrize(
    "overrides",
    [
        TRANSFORMER,
        WHOLE,
        {"loss_scale": 0.5},
        {"feature_grad_mult": 0.1},
        {"feature_grad_mult": 0.0},
        {"conv_bias": True, "required_seq_len_multiple": 2},
        {"activation_fn": "relu"},
        {"mask_channel_prob": 0.0, "average_top_k_layers": 1},
    ],
    ids=str,
)
def test_other_settings(overrides):
    theirs, ours = pair(**overrides)
    theirs.eval(), ours.eval()
    source, padding_mask = batch(padded=True)
    assert_same_step(theirs, ours, source, padding_mask, masks(ours, source, padding_mask))


def train(model, updates, source, mask):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    model.train()
    for update in range(1, updates + 1):
        loss = model(source=source, mask_indices=mask.clone())["losses"]["regression"] / int(mask.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.set_num_updates(update)
        losses.append(float(loss.detach()))
    return losses


def test_losses_over_20_optimiser_steps():
    theirs, ours = pair()
    source, _ = batch()
    mask = masks(ours, source, None)
    expected, losses = train(theirs, 20, source, mask), train(ours, 20, source, mask)
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("scope", [LAYERS, TRANSFORMER, WHOLE], ids=str)
def test_ema_after_50_updates_with_annealing(scope):
    theirs, ours = pair(**scope)
    theirs.train(), ours.train()
    trailed = theirs.encoder if theirs.cfg.ema_transformer_only else theirs
    for update in range(1, 51):
        with torch.no_grad():
            for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
                step = 0.01 * torch.randn_like(a)
                a.add_(step), b.add_(step)
        theirs.set_num_updates(update), ours.set_num_updates(update)
        assert ours.ema.decay == pytest.approx(theirs.ema.get_decay(), abs=1e-12)
    assert ours.ema.fp32.keys() == theirs.ema.fp32_params.keys()
    moved = 0
    for name, value in theirs.ema.fp32_params.items():
        assert relative(ours.ema.fp32[name], value) < 1e-6, name
        assert relative(ours.ema.model.state_dict()[name], value) < 1e-6, name
        moved += float((trailed.state_dict()[name] - value).norm()) > 0
    assert moved > 10


@pytest.mark.parametrize("scope", [LAYERS, WHOLE], ids=str)
def test_state_dict_round_trip_both_ways(scope):
    theirs, ours = pair(**scope)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for p in ours.ema.fp32.values():
            p.add_(0.1 * torch.randn_like(p))
    theirs.load_state_dict(ours.state_dict())
    theirs.eval(), ours.eval()
    source, _ = batch()
    assert_same_step(theirs, ours, source, None, masks(ours, source, None))


def test_a_single_weight_normed_positional_convolution():
    """Upstream cannot copy its teacher with ``pos_conv_depth: 1`` here, so only the student is compared."""
    oracle_module = upstream.load("data2vec_audio")
    settings = {**TINY, "pos_conv_depth": 1, "conv_pos": 20}
    theirs = oracle_module.Data2VecAudioModel(oracle_module.Data2VecAudioConfig(**settings)).eval()
    ours = Data2VecAudioModel(Data2VecAudioConfig(**settings)).eval()
    state = theirs.state_dict()
    names = ("bias", "weight_g", "weight_v")
    assert [k for k in state if "pos_conv" in k] == [f"encoder.pos_conv.0.{k}" for k in names]
    assert list(ours.state_dict()) == list(state)
    ours.load_state_dict(state)
    source, padding_mask = batch(padded=True)
    expected = theirs.extract_features(source, padding_mask)["x"]
    assert relative(ours.extract_features(source, padding_mask)["x"], expected) < 1e-5
    theirs.load_state_dict(ours.state_dict())

    renamed = {
        k.replace("0.weight_g", "0.parametrizations.weight.original0").replace(
            "0.weight_v", "0.parametrizations.weight.original1"
        ): v
        for k, v in state.items()
    }
    again = Data2VecAudioModel(Data2VecAudioConfig(**settings)).eval()
    again.load_state_dict(renamed)
    assert relative(again.extract_features(source, padding_mask)["x"], expected) < 1e-5
    again.set_num_updates(0)
    assert again(source=source)["sample_size"] > 0


def test_upstreams_criterion_logs_the_same():
    theirs, ours = pair()
    theirs.eval(), ours.eval()
    source, _ = batch()
    mask = masks(ours, source, None)
    criterion = ModelCriterion(None, {}, ["ema_decay", "target_var", "pred_var"])
    sample = {"id": torch.arange(3), "net_input": {"source": source, "mask_indices": mask}}
    expected, out = criterion(theirs, sample), criterion(ours, sample)
    assert out[1] == expected[1]
    assert out[2].keys() == expected[2].keys()
    for key, value in expected[2].items():
        assert float(out[2][key]) == pytest.approx(float(value), rel=1e-5), key
