"""2.0 beyond parity: masks that repeat, one pass of the teacher, what a step reads, and what is refused."""

import pytest
import torch
from on_device import OnDevice
from tiny_multi import DECODER, MODALITIES, batch, build, frames, random_masks, root_config, text_task, tiny

from d2v_plugin.criterions.d2v_regression import D2vRegressionCriterion
from d2v_plugin.errors import UserError
from d2v_plugin.method.collapse import CollapseError


def masks_of(model, modality, source, ids, update=3):
    """(B, M, T) masks that the model draws for these samples."""
    drawn = []
    encoder = model.modality_encoders[modality]
    make = encoder.make_masked
    encoder.make_masked = lambda *args, **kwargs: drawn.append(make(*args, **kwargs)) or drawn[-1]
    model.num_updates = update
    with torch.no_grad():
        model(source, id=torch.tensor(ids))
    encoder.make_masked = make
    return drawn[0].mask.unflatten(0, (len(ids), -1))


@pytest.mark.parametrize("modality", ["IMAGE", "TEXT"])
def test_a_sample_s_masks_hang_on_seed_update_and_id_alone(modality):
    model = tiny(modality, clone_batch=3)
    source, _ = batch(modality, B=4)
    together = masks_of(model, modality, source, [7, 5, 9, 2])
    alone = masks_of(model, modality, source[2:3], [9])
    shuffled = masks_of(model, modality, source[[3, 2]], [2, 9])
    assert torch.equal(together[2], alone[0]) and torch.equal(together[[3, 2]], shuffled)
    # clones, samples, updates and seeds differ
    assert not torch.equal(together[0, 0], together[0, 1])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, masks_of(model, modality, source, [7, 5, 9, 2], update=4))
    model.mask_source.seed = 2
    assert not torch.equal(together, masks_of(model, modality, source, [7, 5, 9, 2]))
    # every row masks as much as every other
    assert together.flatten(0, 1).sum(1).unique().numel() == 1


def test_spans_repeat_too_and_spare_padding():
    model = tiny("AUDIO", clone_batch=2)
    source, padding_mask = batch("AUDIO", padded=True)
    lengths = (~padding_mask).sum(1).tolist()
    drawn = []
    for _ in range(2):
        encoder = model.modality_encoders["AUDIO"]
        local = encoder.local_features(source)
        padding, frame_lengths = encoder.frame_padding(local.shape[1], padding_mask, lengths, local.device)
        draws = model.mask_source.draws(torch.tensor([3, 1, 8]), 6, 4, local.device)
        drawn.append(encoder.make_masked(local, 2, draws, padding, frame_lengths).mask)
    assert torch.equal(*drawn)
    assert not (drawn[0] & padding.repeat_interleave(2, 0)).any()
    assert drawn[0].sum(1).unique().numel() == 1


@pytest.mark.parametrize("modality", MODALITIES)
def test_clones_share_one_pass_of_the_teacher_and_only_kept_positions_are_encoded(modality):
    model = tiny(modality, ema_encoder_only=False, clone_batch=4)
    source, _ = batch(modality)
    T = frames(model, modality, source)
    seen = {"teacher": [], "student": []}
    for name, blocks in (("teacher", model.ema.model.blocks), ("student", model.blocks)):
        for block in blocks:
            block.register_forward_pre_hook(lambda module, args, name=name: seen[name].append(tuple(args[0].shape[:2])))
    mask = random_masks(12, T, 0.6)
    out = model(source, precomputed_mask=mask)
    kept = T - int(mask[0].sum())
    assert seen == {"teacher": [(3, T)] * 3, "student": [(12, kept)] * 3}
    assert out["sample_size"] == 12 * (T - kept)
    assert out["masked_pct"] == pytest.approx(1 - kept / T)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_step_reads_nothing_from_the_device(modality):
    model = tiny(modality, {"use_alibi_encoder": True}, watch_interval=100).train()
    model.set_num_updates(1)
    source, padding_mask = batch(modality, padded=True)
    net_input = {"source": source.as_subclass(OnDevice), "id": torch.arange(3).as_subclass(OnDevice)}
    if padding_mask is not None:
        net_input["padding_mask"] = padding_mask.as_subclass(OnDevice)
    if modality == "AUDIO":
        mask = random_masks(6, frames(model, modality, source))
        net_input |= {"precomputed_mask": mask.as_subclass(OnDevice), "masked_count": int(mask[0].sum())}
        net_input["source_lengths"] = (~padding_mask).sum(1).tolist()
    loss, _, logs = D2vRegressionCriterion(None)(model, {"id": torch.arange(3), "net_input": net_input})
    assert isinstance(loss, OnDevice) and isinstance(logs["target_var"], OnDevice)
    loss.backward()


@pytest.mark.parametrize("modality", MODALITIES)
def test_training_with_everything_random_reaches_every_weight(modality):
    every = {
        "prenet_depth": 2,
        "prenet_layerdrop": 0.2,
        "prenet_dropout": 0.1,
        "start_drop_path_rate": 0.1,
        "end_drop_path_rate": 0.2,
        "mask_noise_std": 0.01,
        "use_alibi_encoder": True,
        "learned_alibi_scale": True,
        "num_extra_tokens": 2,
    }
    noise = {"layerdrop": 0.2, "encoder_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
    model = tiny(modality, every, post_mlp_drop=0.1, dropout_input=0.1, end_drop_path_rate=0.2, cls_loss=0.1, **noise)
    model.train()
    source, padding_mask = batch(modality, padded=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for update in range(1, 9):
        torch.manual_seed(update)  # as fairseq does
        model.set_num_updates(update)
        out = model(source, padding_mask=padding_mask, id=torch.arange(3))
        loss = sum(out["losses"].values()) / out["sample_size"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    for name, p in model.named_parameters():
        assert p.isfinite().all() and (not p.requires_grad or not torch.equal(p, start[name])), name


def test_a_row_that_keeps_nothing_but_padding_gives_no_nan():
    model = tiny("TEXT")
    source = torch.full((2, 30), 1)
    source[0], source[1, :2] = torch.arange(30) % 20 + 4, 5
    padding_mask = source.eq(1)
    mask = torch.zeros(4, 30, dtype=torch.bool)
    mask[:, :10] = True  # both tokens of the second row
    out = model(source, padding_mask=padding_mask, precomputed_mask=mask)
    out["losses"]["TEXT_regression"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("padded", [False, True])
def test_length_aware_targets_do_not_see_padding(padded):
    """A batch of one sample with and without padding behind it has the same targets, up to the last convolutions."""
    model = tiny("TEXT", length_aware_targets=True).eval()
    source = torch.randint(4, 24, (1, 20))
    long = torch.cat([source, torch.full((1, 6), 1)], dim=1)
    padding_mask = long.eq(1)
    short_layers, _ = model._teacher_layers(*encoder_of(model), model_local(model, source), None, source, None)
    long_layers, padding = model._teacher_layers(
        *encoder_of(model), model_local(model, long), padding_mask, long, None
    )
    expected, out = model._targets(short_layers, None), model._targets(long_layers, padding)
    torch.testing.assert_close(out[:, :20], expected, atol=1e-5, rtol=1e-5)
    model.cfg.length_aware_targets = False
    assert not torch.allclose(model._targets(long_layers, padding)[:, :20], expected, atol=1e-3)


def encoder_of(model):
    return model.modality_encoders["TEXT"], "TEXT"


def model_local(model, source):
    return model.modality_encoders["TEXT"].local_features(source)


def test_kept_masked_positions_are_seen_and_still_predicted():
    model = tiny("IMAGE", {"keep_masked_pct": 0.5})
    lengths = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    source, _ = batch("IMAGE")
    mask = random_masks(6, 36, 0.5)
    out = model(source, precomputed_mask=mask)
    assert lengths == [18 + 9]
    assert out["sample_size"] == 6 * 18


@pytest.mark.parametrize("same_dtype", [True, False])
def test_half_precision_student(same_dtype):
    model = tiny("IMAGE", ema_encoder_only=False, ema_same_dtype=same_dtype).to(torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in model.ema.fp32.values() if p.is_floating_point())
    expected = torch.bfloat16 if same_dtype else torch.float32
    assert {p.dtype for p in model.ema.model.parameters()} == {expected}
    source = batch("IMAGE")[0].to(torch.bfloat16)
    loss = model(source)["losses"]["IMAGE_regression"]
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    model.train()
    before = {k: v.clone() for k, v in model.ema.fp32.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.set_num_updates(1)
    moved = [k for k, v in model.ema.fp32.items() if not torch.equal(v, before[k])]
    assert len(moved) > 20
    running = model.ema.model.state_dict()
    assert all(torch.equal(running[k], model.ema.fp32[k].to(expected)) for k in moved)


def test_one_model_for_several_modalities_logs_each_by_name():
    model = build(root_config(None))
    model.set_num_updates(0)
    criterion = D2vRegressionCriterion(None)
    logs = []
    for modality in MODALITIES:
        sample = {"id": torch.arange(3), "net_input": {"source": batch(modality)[0], "mode": modality.lower()}}
        logs.append(criterion(model, sample)[2])
    assert all(f"target_var_{m}" in log and f"pred_var_{m}" in log for m, log in zip(MODALITIES, logs, strict=True))
    from fairseq.logging import metrics

    with metrics.aggregate(new_root=True) as found:
        criterion.reduce_metrics(logs)
    values = found.get_smoothed_values()
    for modality, log in zip(MODALITIES, logs, strict=True):
        # the mean over the batches that had it, not over all
        assert float(values[f"target_var_{modality}"]) == pytest.approx(float(log[f"target_var_{modality}"]), abs=1e-3)
    with pytest.raises(UserError, match="several modalities"):
        model(batch("IMAGE")[0])


def test_the_watch_stops_a_collapsed_run_and_logs_before():
    model = tiny("IMAGE", min_target_var=0.1, collapse_guard_updates=5, watch_interval=2).train()
    model.set_num_updates(2)
    logs = model(batch("IMAGE")[0])["logs"]
    assert set(logs) == {f"{a}_{b}" for a in ("feature", "student", "teacher") for b in ("std", "rank")}
    assert "logs" not in model(batch("IMAGE")[0])
    model.num_updates = 6
    model.watch.floors["pred_var"] = 1e9
    with pytest.raises(CollapseError, match="student's predictions hardly vary"):
        model(batch("IMAGE")[0])


def test_fine_tuning_keeps_one_modality_without_teacher_and_decoder():
    model = build(root_config(None))
    model.remove_pretraining_modules("text")
    assert list(model.modality_encoders) == ["TEXT"]
    assert not any("decoder" in k or "_ema" in k for k in model.state_dict())
    out = model.extract_features(batch("TEXT")[0], mode="TEXT")
    assert out["x"].shape == (3, 30, 48)
    with pytest.raises(UserError, match="no teacher"):
        model(batch("TEXT")[0], mode="TEXT")


def test_weights_without_a_teacher_do_not_resume_pretraining():
    model = tiny("TEXT")
    state = {k: v for k, v in model.state_dict().items() if k != "_ema"}
    with pytest.raises(UserError, match="no teacher"):
        tiny("TEXT").load_state_dict(state)
    tiny("TEXT", skip_ema=True).load_state_dict(state)


def test_early_checkpoints_with_flat_alibi_scales_are_read():
    model = tiny("AUDIO", {"use_alibi_encoder": True, "learned_alibi_scale_per_head": True}, ema_encoder_only=True)
    state = model.state_dict()
    key = "modality_encoders.AUDIO.alibi_scale"
    state[key] = state[key].squeeze(0) + 1
    model.upgrade_state_dict(state)
    model.load_state_dict(state)
    assert model.modality_encoders["AUDIO"].alibi_scale.shape == (1, 1, 4, 1, 1)
    assert float(model.modality_encoders["AUDIO"].alibi_scale.mean()) == 2


# -- what is refused ---------------------------------------------------------------------------------

NO_DECODER = {"decoder": None}


@pytest.mark.parametrize(
    ("modality", "every", "overrides", "message"),
    [
        ("IMAGE", {}, {"average_top_k_layers": 4}, "average_top_k_layers 4 must lie between 1 and depth, which is 3"),
        ("IMAGE", {}, {"num_heads": 5}, "not a multiple of num_heads 5"),
        ("IMAGE", {}, {"modalities__image__patch_size": 5}, "input_size 24 is not a multiple of patch_size 5"),
        ("IMAGE", {}, {"modalities__image__alibi_distance": "chessboard"}, "alibi_distance must be one of"),
        ("IMAGE", {}, {"recon_loss": 1.0, "modalities__image__patch_size": 8}, "recon_loss needs embed_dim equal"),
        ("TEXT", {}, {"recon_loss": 1.0}, "goes with IMAGE alone"),
        ("TEXT", {}, {"cls_loss": 1.0}, "num_extra_tokens of at least 1"),
        ("AUDIO", NO_DECODER, {}, "no decoder"),
        ("AUDIO", {}, {"modalities__audio__feature_encoder_spec": "__import__('os')"}, "must list"),
        ("AUDIO", {}, {"modalities__audio__conv_pos_groups": 7}, "conv_pos_groups 7"),
        ("AUDIO", {}, {"modalities__audio__conv_init": "bark"}, "conv_init"),
        ("AUDIO", {"decoder": {**DECODER, "decoder_groups": 5}}, {}, "decoder_groups 5 must divide"),
        ("AUDIO", {"decoder": {**DECODER, "final_layer_norm": True}}, {}, "final_layer_norm"),
        ("AUDIO", {"mask_prob": 1.5}, {}, "model.modalities.audio.mask_prob must be between 0 and 1"),
        ("AUDIO", {"mask_length": 0}, {}, "model.modalities.audio.mask_length must be at least 1"),
        ("AUDIO", {"use_alibi_encoder": True, "learned_alibi": True}, {}, "alibi_max_pos"),
        ("IMAGE", {}, {"clone_batch": 0}, "model.clone_batch"),
        ("IMAGE", {}, {"d2v_loss": 0}, "nothing would be learned"),
        ("IMAGE", {}, {"end_drop_path_rate": 1.0}, "model.end_drop_path_rate must be at least 0 and below 1"),
        ("TEXT", {"use_alibi_encoder": True, "num_alibi_heads": 5}, {}, "num_alibi_heads must be between 1 and 4"),
        ("AUDIO", {"decoder": {**DECODER, "decoder_groups": 0}}, {}, "decoder.decoder_groups must be at least 1"),
        ("AUDIO", {}, {"modalities__audio__conv_pos_depth": 0}, "conv_pos_depth must be at least 1"),
        ("IMAGE", {"use_alibi_encoder": True, "learned_alibi": True, "alibi_max_pos": 35}, {}, "must be a square"),
        ("SMELL", {}, {}, "there is no modality 'SMELL'; known are AUDIO, IMAGE, TEXT"),
    ],
)
def test_configurations_that_cannot_work(modality, every, overrides, message):
    with pytest.raises(UserError, match=message):
        tiny(modality, every, **overrides)


@pytest.mark.parametrize(
    ("modality", "every", "message"),
    [
        ("IMAGE", {"mask_prob": 0.0}, "needs masked positions"),
        ("IMAGE", {"mask_prob": 1.0}, "mask_prob"),
        ("TEXT", {"mask_prob": 0.99, "mask_length": 1}, "mask_prob"),
    ],
)
def test_masks_that_leave_nothing_or_everything(modality, every, message):
    model = tiny(modality, every)
    with pytest.raises(UserError, match=message):
        model(batch(modality)[0], id=torch.arange(3))


@pytest.mark.parametrize("masked", [0, 36])
def test_a_given_mask_that_leaves_nothing_or_everything(masked):
    mask = (torch.arange(36) < masked).expand(6, -1)
    with pytest.raises(UserError, match="the mask leaves"):
        tiny("IMAGE")(batch("IMAGE")[0], precomputed_mask=mask)


def test_given_masks_that_do_not_fit():
    model, (source, _) = tiny("IMAGE"), batch("IMAGE")
    with pytest.raises(UserError, match=r"precomputed_mask must be \(6, 36\), 2 rows per sample, got \(3, 36\)"):
        model(source, precomputed_mask=random_masks(3, 36))
    uneven = random_masks(6, 36)
    uneven[0] = random_masks(1, 36, 0.25)[0]
    # the mean of 18 * 5 and 9, in every row
    assert model(source, precomputed_mask=uneven)["sample_size"] == 6 * 16


def test_data_of_another_modality():
    with pytest.raises(UserError, match="the data is TEXT and the model has IMAGE"):
        tiny("IMAGE")(batch("TEXT")[0], mode="TEXT")
    with pytest.raises(UserError, match=r"takes images of shape \(3, 24, 24\).*task.input_size"):
        tiny("IMAGE")(torch.randn(2, 3, 32, 32))
    with pytest.raises(UserError, match="set in_chans to 3"):
        tiny("IMAGE", modalities__image__in_chans=1)(batch("IMAGE")[0])


def test_text_beyond_the_positions_and_of_another_vocabulary():
    with pytest.raises(UserError, match="50 tokens is longer than max_source_positions 40"):
        tiny("TEXT")(torch.full((1, 50), 5))
    other = tiny("TEXT", task=text_task(words=33)).state_dict()
    with pytest.raises(UserError, match="another vocabulary"):
        tiny("TEXT").load_state_dict(other)
    with pytest.raises(UserError, match="needs the vocabulary of a text task"):
        build(root_config("TEXT"), task=object())


def test_padding_masks_of_any_type_and_of_another_shape():
    model = tiny("TEXT")
    source, padding_mask = batch("TEXT", padded=True)
    more = {"mask": False, "features_only": True}
    with torch.no_grad():
        expected = model(source, padding_mask=padding_mask, **more)["x"]
        for kind in (torch.uint8, torch.float32):
            assert torch.equal(model(source, padding_mask=padding_mask.to(kind), **more)["x"], expected)
    with pytest.raises(UserError, match=r"padding_mask must have the shape of source, \(3, 30\), got \(3, 29\)"):
        model(source, padding_mask=padding_mask[:, 1:], **more)


def test_a_target_of_its_own_needs_a_teacher_that_reads_input():
    source = batch("IMAGE")[0]
    with pytest.raises(UserError, match="target_transform"):
        tiny("IMAGE")(source, target=source)
