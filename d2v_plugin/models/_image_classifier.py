"""What the two models that classify images share: what they read of their configuration, and how they are loaded."""

from fairseq.models import BaseFairseqModel

from d2v_plugin.data.images.mixing import Mixing
from d2v_plugin.fine_tuning.head_size import check_head_size
from d2v_plugin.method.misfits import misfits_named


class ImageClassifier(BaseFairseqModel):
    """A body and a linear layer ``head``; ``num_classes`` are its outputs."""

    @classmethod
    def build_model(cls, cfg, task=None):
        return cls(cfg)

    def load_state_dict(self, state_dict, strict=True, **kwargs):
        """fairseq's, with a line for people.

        Raises:
            UserError: the file has another number of classes, or is of another body.
        """
        check_head_size(state_dict, "head", "head", self.num_classes, "model.num_classes")
        with misfits_named(self.cfg._name):
            return super().load_state_dict(state_dict, strict, **kwargs)


def mixing_of(cfg, prob: float, switch_prob: float, mode: str) -> Mixing | None:
    """How the task mixes a batch, or None where neither mixup nor cutmix is on."""
    if cfg.mixup <= 0 and cfg.cutmix <= 0:
        return None
    return Mixing(
        classes=cfg.num_classes,
        mixup=cfg.mixup,
        cutmix=cfg.cutmix,
        prob=prob,
        switch_prob=switch_prob,
        mode=mode,
        label_smoothing=cfg.label_smoothing,
    )
