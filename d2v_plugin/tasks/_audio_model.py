"""What the audio tasks and their model have to agree on: the frames, and the masks over them."""

import torch

from d2v_plugin.data.audio.masks import AudioMasks
from d2v_plugin.errors import UserError
from d2v_plugin.modules.conv_spec import ConvSpec
from d2v_plugin.tasks._masks import check_masks, mask_settings

# the papers' feature extractor, assumed until a model with another one is built
STANDARD_EXTRACTOR = ConvSpec.parse("[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2")
OTHER_MODALITIES = {"IMAGE", "TEXT"}


def conv_spec(model: torch.nn.Module) -> ConvSpec | None:
    """The feature extractor's specification, from the first module of ``model`` that has one: ours or fairseq's."""
    for module in model.modules():
        spec = getattr(module, "conv_spec", None)
        if isinstance(spec, ConvSpec):
            return spec
        text = getattr(getattr(module, "cfg", None), "conv_feature_layers", None)
        if isinstance(text, str):
            return ConvSpec.parse(text)
    return None


def audio_masks(cfg) -> AudioMasks | None:
    """What ``precompute_mask_config`` says, or None without one.

    Raises:
        UserError: a setting that is to be the model's and that the model lacks, or settings that cannot work.
    """
    wanted = cfg.precompute_mask_config
    if wanted is None:
        return None
    values = mask_settings(wanted, spec="feature_encoder_spec")
    return AudioMasks(**{**values, "spec": ConvSpec.parse(values["spec"])})


def check_model(model: torch.nn.Module, masks: AudioMasks | None) -> None:
    """Refuse a model that is not for audio, or that does not take these masks.

    Raises:
        UserError: one line that names what to change.
    """
    encoders = list(getattr(model, "modality_encoders", ()))
    if encoders and set(encoders) <= OTHER_MODALITIES:
        raise UserError(
            f"the task reads audio and the model has {', '.join(encoders)} only; "
            "set model.supported_modality=AUDIO, or another task"
        )
    if masks is None:
        return
    check_masks(model, masks)
    spec = conv_spec(model)
    if spec is not None and [layer[1:] for layer in spec] != [layer[1:] for layer in masks.spec]:
        raise UserError(
            "task.precompute_mask_config.feature_encoder_spec and the model's convolutions make different numbers of "
            "frames; leave it out to take the model's"
        )
