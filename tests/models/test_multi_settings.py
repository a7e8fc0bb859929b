"""Every setting of 2.0 that parity tests keep at rest does what it says: noise, dropout, initial weights, masks."""

import numpy as np
import pytest
import torch
import upstream
from fairseq.dataclass.utils import merge_with_parent
from tiny_multi import DECODER, MODALITIES, batch, build, frames, random_masks, root_config, text_task, tiny

from d2v_plugin.modalities import base, image

# -- noise that only training has ----------------------------------------------------------------------

ALL = tuple(MODALITIES)
NOISE = [
    (ALL, {}, {"encoder_dropout": 0.5}),
    (ALL, {}, {"attention_dropout": 0.5}),
    (ALL, {}, {"activation_dropout": 0.5}),
    (ALL, {}, {"post_mlp_drop": 0.5}),
    (ALL, {}, {"dropout_input": 0.5}),
    (ALL, {}, {"layerdrop": 0.5}),
    (ALL, {}, {"start_drop_path_rate": 0.5, "end_drop_path_rate": 0.5}),
    (ALL, {"prenet_dropout": 0.5}, {}),
    (ALL, {"prenet_depth": 2, "prenet_layerdrop": 0.5}, {}),
    (ALL, {"prenet_depth": 2, "start_drop_path_rate": 0.5, "end_drop_path_rate": 0.5}, {}),
    (ALL, {"decoder": {**DECODER, "input_dropout": 0.5}}, {}),
    (
        ("IMAGE",),
        {},
        {
            "modalities__image__transformer_decoder": True,
            "modalities__image__enc_dec_transformer": True,
            "modalities__image__decoder__input_dropout": 0.5,
        },
    ),
    (("TEXT",), {}, {"modalities__text__dropout": 0.5}),
]
CASES = [(modality, every, more) for names, every, more in NOISE for modality in names]


def losses(model, source, mask, times):
    out = []
    for seed in range(times):
        torch.manual_seed(seed)
        out.append(float(sum(model(source, precomputed_mask=mask)["losses"].values()).detach()))
    return out


@pytest.mark.parametrize(("modality", "every", "more"), CASES, ids=str)
def test_noise_in_training_and_none_outside(modality, every, more):
    """One kind at a time: the loss of the same input hangs on the seed in training, and in evaluation does not."""
    model = tiny(modality, every, **more)
    source, _ = batch(modality)
    mask = random_masks(2 * len(source), frames(model.eval(), modality, source))
    assert len(set(losses(model.eval(), source, mask, 3))) == 1
    assert len(set(losses(model.train(), source, mask, 6))) > 1


@pytest.mark.parametrize("modality", ALL)
def test_without_any_the_loss_does_not_hang_on_the_seed(modality):
    model = tiny(modality).train()
    source, _ = batch(modality)
    mask = random_masks(2 * len(source), frames(model, modality, source))
    assert len(set(losses(model, source, mask, 3))) == 1


def test_the_teacher_never_drops_anything():
    model = tiny("IMAGE", ema_encoder_only=False, encoder_dropout=0.5, attention_dropout=0.5, end_drop_path_rate=0.9)
    model.train()
    assert not any(module.training for module in model.ema.model.modules())
    source = batch("IMAGE")[0]
    local = model.modality_encoders["IMAGE"].local_features(source)
    layers = []
    for _ in range(2):
        found, _ = model._teacher_layers(model.modality_encoders["IMAGE"], "IMAGE", local, None, source, None)
        layers.append(found)
    assert all(torch.equal(a, b) for a, b in zip(*layers, strict=True))


@pytest.mark.parametrize("modality", ALL)
def test_mask_tokens_are_gaussian_noise(modality):
    model = tiny(modality, {"mask_noise_std": 0.3})
    source, _ = batch(modality)
    mask = random_masks(6, frames(model, modality, source))
    seen = []
    decoder = model.modality_encoders[modality].decoder
    decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(source, precomputed_mask=mask)
    noise = seen[0][mask]
    assert abs(float(noise.std()) - 0.3) < 0.02 and abs(float(noise.mean())) < 0.03
    assert not torch.equal(noise[0], noise[1])


def test_noise_instead_of_zeros_in_the_encoder():
    model = tiny("TEXT", {"encoder_zero_mask": False, "mask_noise_std": 0.3})
    source = batch("TEXT")[0]
    mask = random_masks(3, 30)
    seen = []
    stack = model.modality_encoders["TEXT"].context_encoder
    stack.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(source, precomputed_mask=mask, features_only=True)
    hidden, kept = seen[0][mask], seen[0][~mask]
    assert abs(float(hidden.std()) - 0.3) < 0.03
    local = model.modality_encoders["TEXT"].local_features(source)
    assert torch.equal(kept, local[~mask])


# -- initial weights -----------------------------------------------------------------------------------

STARTS = [
    (modality, every, more)
    for modality in ALL
    for every in ({"num_extra_tokens": 3}, {"num_extra_tokens": 3, "init_extra_token_zero": False})
    for more in ({}, {"mae_init": True}, {"layer_norm_first": True, "shared_decoder": DECODER})
] + [
    ("IMAGE", {}, {"modalities__image__transformer_decoder": True}),
    ("IMAGE", {}, {"modalities__image__transformer_decoder": True, "modalities__image__enc_dec_transformer": True}),
    ("IMAGE", {}, {"modalities__image__embed_dim": 20}),
    ("IMAGE", {}, {"recon_loss": 0.5}),
]


@pytest.mark.parametrize(("modality", "every", "more"), STARTS, ids=str)
def test_weights_start_as_upstream_s(modality, every, more):
    """Each parameter's spread and largest value, from different seeds, up to the error of so many samples."""
    root = root_config(modality, every, **more)
    module = upstream.load_v2("models.data2vec2")
    torch.manual_seed(1)
    with upstream.current_stack():
        cfg = merge_with_parent(module.Data2VecMultiConfig(), root.model)
        theirs = dict(module.Data2VecMultiModel.build_model(cfg, text_task()).named_parameters())
    torch.manual_seed(2)
    ours = dict(build(root).named_parameters())
    assert ours.keys() == theirs.keys()
    for name, theirs_value in theirs.items():
        a, b = (value.detach().flatten().numpy() for value in (ours[name], theirs_value))
        # standard deviation of a standard deviation from n samples: 1 / sqrt(2 n)
        tolerance = 6 / np.sqrt(2 * len(a))
        assert abs(a.std() - b.std()) <= tolerance * max(a.std(), b.std()) + 1e-7, name
        assert abs(a.mean() - b.mean()) <= 6 * max(a.std(), b.std()) / np.sqrt(len(a)) + 1e-6, name
        # tells a uniform from a normal start: the largest of n normal numbers lies far beyond sqrt(3) of the spread
        if len(a) > 500 and b.std() > 0:
            uniform = [abs(x).max() < 1.9 * x.std() for x in (a, b)]
            assert uniform[0] == uniform[1], name


def test_the_first_convolution_can_start_as_a_filterbank():
    spec = {"modalities__audio__feature_encoder_spec": "[(16, 64, 5)] + [(16, 3, 2)] * 2"}
    mel = tiny("AUDIO", modalities__audio__conv_init="mel", **spec)
    weight = mel.modality_encoders["AUDIO"].local_encoder.conv_layers[0][0].weight[:, 0]
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(16))
    again = tiny("AUDIO", modalities__audio__conv_init="mel", **spec)
    assert torch.equal(weight, again.modality_encoders["AUDIO"].local_encoder.conv_layers[0][0].weight[:, 0])


# -- masks drawn by the model --------------------------------------------------------------------------


def spied(monkeypatch, module, name):
    """The keyword arguments of every call."""
    calls = []
    function = getattr(module, name)

    def spy(*args, **kwargs):
        calls.append((args, kwargs))
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, spy)
    return calls


@pytest.mark.parametrize("inverse", [False, True])
def test_settings_of_image_masks_arrive(monkeypatch, inverse):
    calls = spied(monkeypatch, image, "block_mask")
    settings = {"mask_prob": 0.6, "mask_length": 2, "mask_prob_adjust": 0.05, "mask_dropout": 0.1}
    model = tiny("IMAGE", {**settings, "inverse_mask": inverse})
    model(batch("IMAGE")[0])
    (args, kwargs), *_ = calls
    assert args[1] == (6, 6)
    expected = {"prob": 0.6, "length": 2, "adjust": 0.05, "inverse": inverse, "dropout": 0.1}
    assert kwargs == expected


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("modality", ["AUDIO", "TEXT"])
def test_settings_of_span_masks_arrive(monkeypatch, modality, inverse):
    calls = spied(monkeypatch, base, "span_mask")
    settings = {"mask_prob": 0.6, "mask_length": 3, "mask_dropout": 0.1, "add_masks": True, "inverse_mask": inverse}
    model = tiny(modality, settings)
    source, padding_mask = batch(modality, padded=True)
    model(source, padding_mask=padding_mask)
    (args, kwargs), *_ = calls
    T = frames(model, modality, source)
    assert len(args[0]) == 6 and args[0][0] == args[0][1] == args[1] == T and args[0][4] < T
    kwargs.pop("draws")
    prob = pytest.approx(0.4 if inverse else 0.6)
    assert kwargs == {"prob": prob, "span": 3, "min_masks": 1, "mask_dropout": 0.1, "add_masks": True}


def test_the_share_is_drawn_for_all_between_its_bounds_by_seed_and_update():
    model = tiny("TEXT", {"mask_prob": 0.8, "mask_prob_min": 0.2})
    source, shares = batch("TEXT")[0], []
    for seed in [*range(40), 0]:
        torch.manual_seed(seed)
        shares.append(model(source)["masked_pct"])
    assert min(shares) >= 0.2 and max(shares) <= 0.81
    assert max(shares) - min(shares) > 0.4
    assert shares[-1] == shares[0]


@pytest.mark.parametrize("mask_prob", [0.5, 0.0])
def test_channels_are_masked_by_sample(monkeypatch, mask_prob):
    calls = spied(monkeypatch, base, "span_mask")
    settings = {"mask_channel_prob": 0.5, "mask_channel_length": 4, "mask_prob": mask_prob, "mask_length": 1}
    model = tiny("TEXT", settings)
    stack, seen = model.modality_encoders["TEXT"].context_encoder, []
    stack.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    source = batch("TEXT")[0]
    for ids, rows in (([4, 7, 9], [0, 1, 2]), ([9], [2])):
        model(source[rows], features_only=True, id=torch.tensor(ids))
    kwargs = calls[0][1]
    assert (kwargs["prob"], kwargs["span"], kwargs["name"]) == (0.5, 4, "mask_channel")
    dead = [(x == 0).all(1) for x in seen]
    assert dead[0].sum(1).min() > 0 and not torch.equal(dead[0][0], dead[0][1])
    # alone or in a batch the same ones, thinned to the count that all rows of the batch have
    assert not (dead[0][2] & ~dead[1][0]).any()


def test_masks_without_sample_numbers_differ_by_rank_and_repeat_by_seed(monkeypatch):
    from d2v_plugin.method.masking import sources

    drawn = {}
    for rank in (0, 1, 0):
        monkeypatch.setattr(sources, "data_rank", lambda rank=rank: rank)
        model = tiny("TEXT")
        torch.manual_seed(5)
        out = model.mask_source.draws(None, 6, 3, torch.device("cpu")).uniform("random", 30)
        if rank in drawn:
            assert torch.equal(drawn[rank], out)
        drawn[rank] = out
    assert not torch.equal(drawn[0], drawn[1])


# -- precision, and what is logged ---------------------------------------------------------------------

SCOPES = [
    {"ema_encoder_only": True},
    {"ema_encoder_only": False, "ema_local_encoder": False},
    {"ema_encoder_only": False, "ema_local_encoder": True},
]


@pytest.mark.parametrize("same_dtype", [True, False])
@pytest.mark.parametrize("scope", SCOPES, ids=str)
@pytest.mark.parametrize("modality", ALL)
def test_half_precision_in_every_scope(modality, scope, same_dtype):
    every = {"use_alibi_encoder": True, "learned_alibi_scale": True, "num_extra_tokens": 1}
    every["ema_local_encoder"] = scope.get("ema_local_encoder", False)
    model = tiny(modality, every, ema_encoder_only=scope["ema_encoder_only"], ema_same_dtype=same_dtype, cls_loss=0.1)
    source, padding_mask = batch(modality, padded=True)
    mask = random_masks(2 * len(source), frames(model, modality, source))
    expected = sum(model(source, padding_mask=padding_mask, precomputed_mask=mask)["losses"].values())
    model.to(torch.bfloat16)
    source = source.to(torch.bfloat16) if source.is_floating_point() else source
    loss = sum(model(source, padding_mask=padding_mask, precomputed_mask=mask)["losses"].values())
    assert loss.dtype == torch.float32
    # bf16 carries 8 bits; dozens of layers of rounding stay within a few of them
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.1)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_cast_and_back_leaves_the_averages_alone():
    model = tiny("IMAGE", ema_encoder_only=False)
    before = {k: v.clone() for k, v in model.ema.fp32.items()}
    model.half().float()
    assert all(torch.equal(model.ema.fp32[k], v) for k, v in before.items())
    running = model.ema.model.state_dict()
    assert all(torch.equal(running[k], v) for k, v in before.items())


def test_norms_are_those_of_student_and_teacher():
    model = tiny("TEXT", ema_encoder_only=True).train()
    source = batch("TEXT")[0]
    assert "model_norm" not in model(source)
    model.set_num_updates(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    model.set_num_updates(2)
    out = model(source)
    student = torch.cat([p.flatten() for p in model.blocks.parameters()]).norm()
    teacher = torch.cat([p.flatten() for p in model.ema.fp32.values()]).norm()
    assert float(out["model_norm"]) == pytest.approx(float(student), rel=1e-5)
    assert float(out["ema_norm"]) == pytest.approx(float(teacher), rel=1e-5)
    assert "model_norm" not in tiny("TEXT", log_norms=False)(source)


@pytest.mark.parametrize("keep_decoder", [False, True])
def test_decoders_stay_where_asked_for(keep_decoder):
    model = tiny("TEXT", shared_decoder=DECODER)
    model.remove_pretraining_modules(keep_decoder=keep_decoder)
    assert (model.shared_decoder is not None) == keep_decoder
    assert (model.modality_encoders["TEXT"].decoder is not None) == keep_decoder


def test_learned_scales_below_zero_count_as_zero():
    model = tiny("TEXT", {"use_alibi_encoder": True, "learned_alibi_scale": True})
    source = batch("TEXT")[0]
    out = []
    for value in (-1.0, 0.0, 1.0):
        with torch.no_grad():
            model.modality_encoders["TEXT"].alibi_scale.fill_(value)
            out.append(model(source, mask=False, features_only=True)["x"])
    assert torch.equal(out[0], out[1]) and not torch.allclose(out[1], out[2])
