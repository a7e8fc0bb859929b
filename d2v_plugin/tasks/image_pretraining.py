"""Task ``image_pretraining``: images without labels, for data2vec 1.0, with upstream's name and fields."""

from dataclasses import dataclass

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task

from d2v_plugin.data.images.source import find_unlabelled
from d2v_plugin.tasks._images import JITTER, ImagePretraining, ImagePretrainingFields


@dataclass
class ImagePretrainingConfig(ImagePretrainingFields):
    """``data``, ``input_size`` and the normalisation are upstream's fields, the others ours."""


@register_task("image_pretraining", dataclass=ImagePretrainingConfig)
class ImagePretrainingTask(ImagePretraining):
    """Crops of 8 to 100 percent of the area, mirrored and with other colours, as BEiT's.

    Images may lie in folders of any depth below ``<data>/<split>``, or below ``data`` where there is no such split;
    tar shards of a split are read, too. Differs from upstream's task as ``mae_image_pretraining`` does: unusable images
    are skipped and counted, all that is random is a function of the seed, the epoch and the sample, masks included,
    and in validation nothing is random but the masks.
    """

    cfg: ImagePretrainingConfig

    def __init__(self, cfg: ImagePretrainingConfig):
        super().__init__(cfg, jitter=JITTER)

    def load_dataset(self, split: str, combine: bool = False, task_cfg: FairseqDataclass = None, **kwargs):
        cfg = task_cfg or self.cfg
        index = find_unlabelled(list(cfg.multi_data or [cfg.data]), split)
        self.image_dataset(split, index, cfg, beit=True)
