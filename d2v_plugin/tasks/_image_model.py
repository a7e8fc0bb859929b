"""What an image task and its model have to agree on: the input, and the masks over its patches."""

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
    wanted = getattr(cfg, "precompute_mask_config", None)
    return None if wanted is None else ImageMasks(cfg.input_size, **mask_settings(wanted, patch_size="patch_size"))


def check_model(cfg, key: str, model: torch.nn.Module) -> None:
    """Refuse a model that does not take the images of this configuration, or not its masks.

    Args:
        cfg: of ``mae_image_pretraining`` or ``image_pretraining``.
        key: the name by which the task passes images.
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
    if not takes(model, key):
        named = named_arguments(model)
        if not hasattr(cfg, "key"):
            raise UserError(
                f"task {cfg._name} is for model data2vec_vision, and this one takes {', '.join(named)}; set "
                "task._name=mae_image_pretraining"
            )
        raise UserError(f"task.key={key}, and the model takes {', '.join(named)}; set task.key={named[0]}")
    if getattr(cfg, "target_transform", False) and not takes(model, "target"):
        raise UserError(
            "task.target_transform makes an image of its own for the teacher and this model takes none; set it to "
            "false, or train model data2vec_multi"
        )
    shape = encoders[MODALITY].modality_cfg if encoders is not None else getattr(model, "cfg", None)
    own = "image_size" if hasattr(shape, "image_size") else "input_size"
    size, patch = (getattr(shape, name, None) for name in (own, "patch_size"))
    if patch is not None:
        check_patches(cfg.input_size, patch)
    if size is not None and size != cfg.input_size:
        field_name = f"model.modalities.image.{own}" if encoders is not None else f"model.{own}"
        raise UserError(f"task.input_size={cfg.input_size} and {field_name}={size}; make them the same")
    masks = image_masks(cfg)
    if masks is not None:
        check_masks(model, masks, patch_size=(masks.patch_size, patch))
