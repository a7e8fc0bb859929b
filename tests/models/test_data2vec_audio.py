"""The model's contract: masks, padding, LayerDrop, updates and refused configurations."""

import copy

import pytest
import torch
from tiny_model import TINY, make, padded_batch

from d2v_plugin.errors import UserError
from d2v_plugin.models.data2vec_audio import Data2VecAudioConfig, Data2VecAudioModel


def test_a_step_gives_loss_sizes_and_statistics():
    model = make()
    out = model(torch.randn(2, 4000))
    T = model.conv_spec.frames(4000)
    assert 0 < out["sample_size"] < 2 * T
    assert out["losses"]["regression"] > 0
    assert out["ema_decay"] == pytest.approx(999.0)
    out["losses"]["regression"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_source_lengths_change_nothing_but_where_lengths_come_from():
    model = make().eval()
    source, padding_mask, lengths = padded_batch()
    named = copy.deepcopy(model)(source, padding_mask, source_lengths=lengths)
    plain = model(source, padding_mask)
    assert torch.equal(plain["losses"]["regression"], named["losses"]["regression"])
    assert plain["sample_size"] == named["sample_size"]


def test_padding_does_not_change_features_of_a_layer_norm_extractor():
    # A deeper positional encoder lets the last frames see what convolutions made of the padding, as upstream does.
    model = make(pos_conv_depth=1).eval()
    source, padding_mask, lengths = padded_batch()
    together = model.extract_features(source, padding_mask)
    for b, n in enumerate(lengths):
        alone = model.extract_features(source[b : b + 1, :n], None)["x"]
        torch.testing.assert_close(together["x"][b : b + 1, : alone.shape[1]], alone, rtol=1e-4, atol=1e-5)
        assert int((~together["padding_mask"][b]).sum()) == alone.shape[1]


def test_padding_is_never_masked():
    model = make()
    _, padding_mask, lengths = padded_batch()
    frames = [model.conv_spec.frames(n) for n in lengths]
    T = frames[0]
    mask = torch.arange(T) >= torch.tensor(frames)[:, None]
    for _ in range(20):
        _, drawn, rows = model.apply_mask(torch.zeros(3, T, 16), mask, frame_lengths=frames)
        assert not (drawn & mask).any()
        assert torch.equal(rows, drawn.flatten().nonzero().squeeze(1))


def test_channel_masks_zero_whole_channels():
    for before in (False, True):
        model = make(mask_channel_prob=0.5, mask_channel_length=4, mask_channel_before=before, mask_prob=0.0)
        x, mask, rows = model.apply_mask(torch.ones(2, 5, 16), None)
        assert mask is None and rows is None
        zeroed = (x == 0).all(1)
        assert zeroed.any() and not zeroed.all()
        assert ((x == 0) == zeroed[:, None]).all()


def test_layerdrop_repeats_with_the_seed_and_drops_about_as_often_as_asked():
    model = make(encoder_layers=3, encoder_layerdrop=0.4).train()
    twin = copy.deepcopy(model)
    twin(torch.randn(2, 4000))  # other draws in between do not matter
    drawn = []
    for m in (model, twin):
        torch.manual_seed(5)
        drawn.append([m.encoder.layerdrop.skipped(3, m.training) for _ in range(300)])
    assert drawn[0] == drawn[1]
    share = sum(map(sum, drawn[0])) / 900
    assert 0.33 < share < 0.47
    model.eval()
    assert model.encoder.layerdrop.skipped(3, model.training) == [False] * 3


def test_masks_repeat_with_the_seed_of_the_update():
    model = make().eval()
    source = torch.randn(2, 4000)
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(float(model(source)["losses"]["regression"].detach()))
    losses[1:] = losses[:0:-1]
    assert losses[0] == losses[1] != losses[2]


def test_activation_checkpointing_changes_no_gradient():
    source = torch.randn(2, 4000)
    grads = []
    for switch in (False, True):
        torch.manual_seed(0)
        model = make(checkpoint_activations=switch, dropout=0.0, attention_dropout=0.0)
        torch.manual_seed(1)
        model(source)["losses"]["regression"].backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_a_whole_model_teacher_averages_k_layers():
    """Upstream averages all layers here, whatever ``average_top_k_layers`` says; a departure on purpose."""
    model = make(ema_transformer_only=False, ema_layers_only=False, average_top_k_layers=1).eval()
    source = torch.randn(2, 4000)
    seen = []
    model.target_recipe = lambda layers, rows, lengths: seen.append(len(layers)) or torch.zeros(len(rows), 16)
    model(source)
    assert seen == [1]


def test_deepnorm_scales_residuals_and_starts():
    deep = {"self_attn_norm_type": "deepnorm", "final_norm_type": "deepnorm"}
    model = make(**deep).eval()
    block, x = model.encoder.layers[1], torch.randn(2, 7, 16)
    scale = (2 * 3) ** 0.25
    y = block.self_attn_layer_norm(scale * x + block.self_attn(x))
    expected = block.final_layer_norm(scale * y + block.fc2(torch.nn.functional.gelu(block.fc1(y))))
    torch.testing.assert_close(block(x)[0], expected)
    wide = make(**deep, encoder_embed_dim=256, encoder_ffn_embed_dim=256).encoder.layers[0]
    assert float(wide.fc1.weight.detach().std()) == pytest.approx((8 * 3) ** -0.25 / 16, rel=0.05)
    with pytest.raises(ValueError, match="set layer_norm_first to false"):
        make(**deep, layer_norm_first=True)


def test_a_mel_start_hears_frequencies_in_order():
    """Each filter of the first convolution answers most to a tone near its own place on the mel scale."""
    model = make(conv_init="mel", conv_feature_layers="[(64, 256, 40)] + [(64, 4, 2)] * 3")
    conv = model.feature_extractor.conv_layers[0][0]
    time = torch.arange(4000) / 16000
    loudest = []
    for hz in (200, 500, 1000, 2000, 3500):
        power = conv(torch.sin(2 * torch.pi * hz * time)[None, None]).square().mean(-1)[0]
        loudest.append(int((power[:32] + power[32:]).argmax()))
    assert loudest == sorted(set(loudest))
    assert model(torch.randn(2, 16000))["losses"]["regression"].isfinite()


# -- the teacher and the update number ---------------------------------------------------------------


def nudge(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)


def teacher(model):
    return torch.cat([v.flatten().clone() for v in model.ema.state_dict().values()])


def test_only_a_step_of_one_moves_the_teacher():
    model = make().train()
    start = teacher(model)
    nudge(model)
    for update in (0, 5, 5):  # the number fairseq repeats, and the jump of a resume
        model.set_num_updates(update)
        assert torch.equal(teacher(model), start)
    model.set_num_updates(6)
    assert not torch.equal(teacher(model), start)


def test_decay_does_not_depend_on_how_the_update_was_reached():
    straight, resumed = make(), make()
    for update in range(1, 8):
        straight.set_num_updates(update)
    resumed.set_num_updates(6)
    resumed.set_num_updates(7)
    assert straight.ema.decay == resumed.ema.decay


def test_a_constant_decay_of_one_freezes_the_teacher():
    model = make(ema_decay=1.0, ema_end_decay=1.0).train()
    start = teacher(model)
    nudge(model)
    model.set_num_updates(1)
    assert torch.equal(teacher(model), start)


def test_loading_restores_the_teacher_before_and_after_it_exists():
    trained = make().train()
    nudge(trained)
    trained.set_num_updates(1)
    state = trained.state_dict()
    for made in (make(), Data2VecAudioModel(Data2VecAudioConfig(**TINY))):
        made.load_state_dict(state)
        assert torch.equal(teacher(made), teacher(trained))


def test_the_first_batch_after_resuming_moves_the_teacher_once():
    """fairseq saves update 2 before the batch that would move the teacher to it."""
    trained = make().train()
    for update in (1, 2):
        trained.set_num_updates(update - 1)
        nudge(trained)
    saved = copy.deepcopy(trained.state_dict())
    resumed = make().train()
    resumed.set_num_updates(2)
    resumed.load_state_dict(saved)
    for model in (trained, resumed):
        for _ in range(3):  # micro-batches
            model.set_num_updates(2)
    assert torch.equal(teacher(resumed), teacher(trained))
    assert not torch.equal(teacher(resumed), torch.cat([v.flatten() for v in saved["_ema"].values()]))


def test_weights_of_another_model_are_named():
    with pytest.raises(UserError, match="teacher weight .* in the checkpoint and .* use the sizes of the checkpoint"):
        make().load_state_dict(make(encoder_embed_dim=32).state_dict())
    with pytest.raises(UserError, match="do not fit this data2vec_audio model; use the model settings.*size mismatch"):
        make().load_state_dict(make(conv_feature_layers="[(16, 10, 5)] + [(8, 3, 2)] * 3").state_dict())
    with pytest.raises(UserError, match="do not fit this.*Missing key"):
        Data2VecAudioModel(Data2VecAudioConfig(**TINY)).load_state_dict({"decoder.weight": torch.zeros(1)})


def test_resuming_from_weights_without_a_teacher_says_what_to_do():
    state = make().state_dict()
    del state["_ema"]
    with pytest.raises(ValueError, match="holds no teacher.*start a new run"):
        make().load_state_dict(state)


def test_fine_tuning_drops_the_teacher_and_the_head():
    model = make()
    model.remove_pretraining_modules(last_layer=1)
    state = model.state_dict()
    assert not any(k.startswith(("_ema", "final_proj", "encoder.layers.2")) for k in state)
    assert model.extract_features(torch.randn(1, 4000), None)["x"].shape[-1] == 16


def test_the_teacher_follows_the_student_to_another_dtype():
    model = make().half()
    assert next(model.ema.model.parameters()).dtype == torch.half
    assert all(v.dtype == torch.float32 for v in model.ema.state_dict().values() if v.is_floating_point())


# -- refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"average_top_k_layers": 4}, "average_top_k_layers 4 must lie between 1 and encoder_layers, which is 3"),
        ({"average_top_k_layers": 0}, "average_top_k_layers 0"),
        ({"layer_type": "conformer"}, "layer_type conformer is not part of data2vec"),
        ({"conv_feature_layers": "__import__('os').getcwd()"}, "conv_feature_layers must list"),
        ({"extractor_mode": "batch_norm"}, "extractor_mode must be one of default, layer_norm"),
        ({"activation_fn": "mish"}, "activation_fn must be one of"),
        ({"encoder_attention_heads": 5}, "not a multiple of encoder_attention_heads 5"),
        ({"final_norm_type": "deepnorm"}, "both be layer or both be deepnorm, got 'layer' and 'deepnorm'"),
        ({"conv_init": "gabor"}, "conv_init must be random or mel"),
        ({"mask_length": 0}, "mask_length must be at least 1, got 0"),
        ({"mask_dropout": 2.0}, "mask_dropout must be between 0 and 1"),
        ({"dropout": 2.0}, "model.dropout must be between 0 and 1"),
        ({"encoder_layerdrop": 2.0}, "encoder_layerdrop must be between 0 and 1"),
        ({"ema_decay": 1.5}, "ema_decay must be between 0 and 1"),
        ({"loss_beta": -1.0}, "loss_beta must be at least 0"),
        ({"watch_interval": -5}, "watch_interval must be at least 1"),
        ({"conv_pos_groups": 5}, "conv_pos_groups 5 must divide encoder_embed_dim, which is 16"),
        ({"mask_prob": 1.5}, "mask_prob must be between 0 and 1"),
    ],
)
def test_configurations_that_cannot_work(overrides, message):
    with pytest.raises(ValueError, match=message):
        make(**overrides)


def test_a_recording_shorter_than_a_frame():
    with pytest.raises(ValueError, match="a sample of 20 samples is shorter than the 80"):
        make()(torch.randn(1, 20))


def test_pretraining_without_a_mask():
    with pytest.raises(ValueError, match="set model.mask_prob above 0"):
        make(mask_prob=0.0)(torch.randn(1, 4000))


def test_an_impossible_mask():
    with pytest.raises(ValueError, match="leaves nothing of"):
        make(mask_prob=1.0, mask_length=1)(torch.randn(1, 400))
