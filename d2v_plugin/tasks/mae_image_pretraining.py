"""Task ``mae_image_pretraining``: images without labels, for data2vec 2.0 and for MAE, with upstream's fields."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task
from omegaconf import II

from d2v_plugin.data.images.source import KINDS, find_images
from d2v_plugin.errors import UserError
from d2v_plugin.tasks._image_model import image_masks
from d2v_plugin.tasks._images import JITTER, ImagePretraining, ImagePretrainingFields


@dataclass
class ImageMaskingConfig:
    """Masks drawn by the data workers; what is not given is the model's."""

    patch_size: int = II("model.modalities.image.patch_size")
    mask_prob: float = II("model.modalities.image.mask_prob")
    mask_prob_adjust: float = II("model.modalities.image.mask_prob_adjust")
    mask_length: int = II("model.modalities.image.mask_length")
    inverse_mask: bool = II("model.modalities.image.inverse_mask")
    mask_dropout: float = II("model.modalities.image.mask_dropout")
    clone_batch: int = II("model.clone_batch")
    expand_adjacent: bool = False
    non_overlapping: bool = False


@dataclass
class MaeImagePretrainingConfig(ImagePretrainingFields):
    """Upstream's fields; those of the base class from ``max_bad_files`` on are ours."""

    key: str = field(default="imgs", metadata={"help": "the model's name for its input: imgs (mae), source (data2vec)"})
    beit_transforms: bool = field(
        default=False, metadata={"help": "crops of 8 to 100 percent and colour jitter, instead of 20 to 100 percent"}
    )
    target_transform: bool = field(
        default=False, metadata={"help": "student and teacher see the same crop with different colour jitter"}
    )
    no_transform: bool = field(default=False, metadata={"help": "the whole image, squeezed into a square"})
    precompute_mask_config: Optional[ImageMaskingConfig] = field(
        default=None, metadata={"help": "draw masks in the data workers; {} takes the model's settings"}
    )
    dataset_type: str = field(
        default="imagefolder",
        metadata={
            "help": "imagefolder: <data>/<split>/<class>/*.jpg, or shards where there are no images; "
            "tar: <data>/<split>/*.tar or <data>/<split>-*.tar; path: every image below data, whatever the split"
        },
    )


@register_task("mae_image_pretraining", dataclass=MaeImagePretrainingConfig)
class MaeImagePretrainingTask(ImagePretraining):
    """Random crops of images.

    Differs from upstream's task in that unusable images are skipped and counted (``max_bad_files``), tar shards are
    read, crops, colours, masks and order are functions of the seed, the epoch and the sample, and in validation nothing
    is random: the middle of each image is seen.
    """

    cfg: MaeImagePretrainingConfig

    def __init__(self, cfg: MaeImagePretrainingConfig):
        jittered = cfg.target_transform or (cfg.beit_transforms and not cfg.no_transform)
        super().__init__(
            cfg,
            flip=0.0 if cfg.no_transform else 0.5,
            jitter=JITTER if jittered else 0.0,
            jitter_target=cfg.target_transform,
        )
        if cfg.dataset_type not in KINDS:
            raise UserError(f"task.dataset_type must be one of {', '.join(KINDS)}, got {cfg.dataset_type!r}")

    @property
    def key(self):
        return self.cfg.key

    def masks(self, cfg):
        return image_masks(cfg) or super().masks(cfg)

    def load_dataset(self, split: str, combine: bool = False, task_cfg: FairseqDataclass = None, **kwargs):
        cfg = task_cfg or self.cfg
        index = find_images(list(cfg.multi_data or [cfg.data]), split, cfg.dataset_type)
        self.image_dataset(split, index, cfg, beit=cfg.beit_transforms, plain=cfg.no_transform)
