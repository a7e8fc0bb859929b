"""What the image task and its model have to agree on: the input, and the masks over its patches."""

import torch

from d2v_plugin.data.images.masks import ImageMasks, check_patches
from d2v_plugin.errors import UserError
from d2v_plugin.tasks._forward import named_arguments, takes
from d2v_plugin.tasks._masks import check_masks, mask_settings

MODALITY = "IMAGE"


def image_masks(cfg) -> ImageMasks | None:
    """What ``precompute_mask_config`` says, or None without one.

    Raises:
        UserError: a setting that is to be the model's and that the model lacks, or patches that do not fill the image.
    """
    wanted = cfg.precompute_mask_config
    return None if wanted is None else ImageMasks(cfg.input_size, **mask_settings(wanted, patch_size="patch_size"))


def check_model(cfg, model: torch.nn.Module) -> None:
    """Refuse a model that does not take the images of this configuration, or not its masks.

    Raises:
        UserError: no encoder for images, another name for its input, no input for the teacher, another size, or
            other masks.
    """
    encoders = getattr(model, "modality_encoders", None)
    if encoders is not None and MODALITY not in encoders:
        raise UserError(
            f"the task reads images and the model has {', '.join(encoders)} only; "
            f"set model.supported_modality={MODALITY}, or another task"
        )
    if not takes(model, cfg.key):
        named = named_arguments(model)
        raise UserError(f"task.key={cfg.key}, and the model takes {', '.join(named)}; set task.key={named[0]}")
    if cfg.target_transform and not takes(model, "target"):
        raise UserError(
            "task.target_transform makes an image of its own for the teacher and this model takes none; set it to "
            "false, or train model data2vec_multi"
        )
    shape = encoders[MODALITY].modality_cfg if encoders is not None else getattr(model, "cfg", None)
    size, patch = (getattr(shape, name, None) for name in ("input_size", "patch_size"))
    if patch is not None:
        check_patches(cfg.input_size, patch)
    if size is not None and size != cfg.input_size:
        field_name = "model.modalities.image.input_size" if encoders is not None else "model.input_size"
        raise UserError(f"task.input_size={cfg.input_size} and {field_name}={size}; make them the same")
    masks = image_masks(cfg)
    if masks is not None:
        check_masks(model, masks, patch_size=(masks.patch_size, patch))
