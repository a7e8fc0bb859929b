"""What fine-tuning says about dropout, masks and gradients, as the two versions' pre-training models spell it."""

# fine-tuning's field -> of data2vec_audio, where the name differs
AUDIO_NAMES = {"layerdrop": "encoder_layerdrop"}
AUDIO_FIELDS = (
    "dropout",
    "activation_dropout",
    "dropout_input",
    "attention_dropout",
    "layerdrop",
    "feature_grad_mult",
    "checkpoint_activations",
    "mask_prob",
    "mask_length",
    "mask_selection",
    "mask_other",
    "no_mask_overlap",
    "mask_min_space",
    "require_same_masks",
    "mask_dropout",
    "mask_channel_prob",
    "mask_channel_length",
    "mask_channel_before",
    "mask_channel_selection",
    "mask_channel_other",
    "no_mask_channel_overlap",
    "mask_channel_min_space",
)
# of data2vec_multi: the model's, and those of its modality
MULTI_FIELDS = {
    "encoder_dropout": "dropout",
    "post_mlp_drop": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "dropout_input",
    "layerdrop": "layerdrop",
}
MODALITY_FIELDS = {
    "prenet_layerdrop": "layerdrop",
    "prenet_dropout": "dropout",
    "local_grad_mult": "feature_grad_mult",
    "mask_prob": "mask_prob",
    "mask_length": "mask_length",
    "mask_dropout": "mask_dropout",
    "mask_channel_prob": "mask_channel_prob",
    "mask_channel_length": "mask_channel_length",
    "encoder_zero_mask": "zero_mask",
    "learned_alibi_scale": "update_alibi",
}


def apply_to(model_cfg, fine_tuning) -> None:
    """Change the configuration of a ``data2vec_audio`` or ``data2vec_multi`` in place.

    Args:
        model_cfg: the model's configuration, open for new keys.
        fine_tuning: has the fields named above, and ``drop_path``.
    """
    if model_cfg.get("_name") != "data2vec_multi":
        for field in AUDIO_FIELDS:
            model_cfg[AUDIO_NAMES.get(field, field)] = getattr(fine_tuning, field)
        return
    for key, field in MULTI_FIELDS.items():
        model_cfg[key] = getattr(fine_tuning, field)
    encoder = model_cfg.modalities.audio
    for key, field in MODALITY_FIELDS.items():
        encoder[key] = getattr(fine_tuning, field)
    # Where pre-training drew what is kept, or the share of what is masked, fine-tuning masks spans, always as many.
    encoder["inverse_mask"], encoder["mask_prob_min"] = False, None
    set_drop_path(model_cfg, fine_tuning.drop_path)


def override(model_cfg, overrides) -> None:
    """The same from fairseq's overrides of ``wav2vec_ctc``, which carry the names of the fields that they change."""
    if model_cfg.get("_name") == "data2vec_audio":
        names = {AUDIO_NAMES.get(field, field) for field in AUDIO_FIELDS}
        model_cfg.update({key: value for key, value in overrides.items() if key in names})
    if model_cfg.get("_name") != "data2vec_multi":
        return
    encoder = model_cfg.modalities.audio
    model_cfg.update({key: value for key, value in overrides.items() if key in MULTI_FIELDS})
    encoder.update({key: value for key, value in overrides.items() if key in MODALITY_FIELDS})
    encoder["inverse_mask"], encoder["mask_prob_min"] = False, None
    set_drop_path(model_cfg, overrides.get("drop_path") or 0.0)


def set_drop_path(model_cfg, rate: float) -> None:
    """Drop path of a ``data2vec_multi`` for audio that grows evenly from 0 at the first block to ``rate`` at the last.

    Its own blocks come first, then those that modalities share.
    """
    encoder = model_cfg.modalities.audio
    own, blocks = int(encoder.get("prenet_depth", 0)), int(encoder.get("prenet_depth", 0)) + int(model_cfg.depth)
    rates = [rate * block / max(blocks - 1, 1) for block in range(blocks)]
    model_cfg["start_drop_path_rate"], model_cfg["end_drop_path_rate"] = rates[own], rates[-1]
    if own:
        encoder["start_drop_path_rate"], encoder["end_drop_path_rate"] = rates[0], rates[own - 1]


def normalized_in_pretraining(cfg) -> bool | None:
    """Whether recordings were normalised, by the configuration of pre-training; None where it does not say.

    fairseq keeps this with the task, a task of several modalities with that of audio, files of before 2021 with the
    model.
    """
    audio = cfg.task.get("audio") if cfg.task.get("_name") == "multimodal_pretraining" else None
    for part in (audio, cfg.task, cfg.model):
        if part is not None and part.get("normalize") is not None:
            return bool(part.normalize)
    return None
