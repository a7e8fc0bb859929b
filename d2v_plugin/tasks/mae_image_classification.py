"""Task ``mae_image_classification``: labelled images for models on data2vec 2.0 and MAE, with upstream's fields."""

from dataclasses import dataclass

from fairseq.tasks import register_task

from d2v_plugin.tasks._image_classification import ImageClassification, ImageClassificationFields


@dataclass
class MaeImageClassificationConfig(ImageClassificationFields):
    pass


@register_task("mae_image_classification", dataclass=MaeImageClassificationConfig)
class MaeImageClassificationTask(ImageClassification):
    """Images as ``imgs``, numbers of their classes as ``labels``."""

    cfg: MaeImageClassificationConfig
