"""A fine-tuned checkpoint carries the configuration of the model it was built on.

Models put it into ``model.pretrained_model_args``, that of recordings into ``model.d2v_args``, so that they load
without the file of pre-training. fairseq hands them a copy of the configuration, so it never gets into the checkpoint
unless the task copies it back, which ``sentence_prediction`` does not.
"""

from typing import Any

from fairseq.trainer import Trainer
from omegaconf import OmegaConf

FIELDS = ("pretrained_model_args", "d2v_args")


def install() -> None:
    """Wrap ``Trainer.state_dict``."""
    original = Trainer.state_dict

    def state_dict(self) -> dict[str, Any]:
        """fairseq's result with what the model itself has in these fields."""
        state = original(self)
        # the model under the wrappers of distributed training
        own = getattr(self._model, "cfg", None)
        model = state["cfg"].get("model") if isinstance(state["cfg"], dict) else None
        for field in FIELDS:
            saved = getattr(own, field, None)
            if saved is not None and isinstance(model, dict):
                model[field] = OmegaConf.to_container(OmegaConf.create(saved), resolve=True, enum_to_str=True)
        return state

    Trainer.state_dict = state_dict
