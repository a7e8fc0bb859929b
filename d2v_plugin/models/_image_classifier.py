"""What the two models that classify images share: what they read of their configuration, and how they are loaded."""

from fairseq.models import BaseFairseqModel
from omegaconf import OmegaConf

from d2v_plugin.data.images.mixing import Mixing
from d2v_plugin.errors import UserError
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


def model_path(cfg) -> str | None:
    """``model.model_path``; None where the configuration carries that of pre-training, as a checkpoint does.

    Raises:
        UserError: neither is there.
    """
    if cfg.pretrained_model_args is not None:
        return None
    if (OmegaConf.is_config(cfg) and OmegaConf.is_missing(cfg, "model_path")) or not cfg.model_path:
        raise UserError(
            "model.model_path is not set; give a checkpoint of pre-training, model.model_path=FILE.pt (from scratch, "
            "too, for its shape: model.no_pretrained_weights=true)"
        )
    return cfg.model_path


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
