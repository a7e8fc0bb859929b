"""Task ``image_classification``: labelled images for models on data2vec 1.0, with upstream's fields."""

from dataclasses import dataclass

from fairseq.tasks import register_task

from d2v_plugin.tasks._image_classification import ImageClassification, ImageClassificationFields


@dataclass
class ImageClassificationConfig(ImageClassificationFields):
    pass


@register_task("image_classification", dataclass=ImageClassificationConfig)
class ImageClassificationTask(ImageClassification):
    """Images as ``img``, numbers of their classes as ``label``."""

    cfg: ImageClassificationConfig
    image_key, label_key = "img", "label"
    share_up_to = 383
    shift_up_to = 32
