"""A fine-tuned checkpoint carries the configuration of the model it was built on.

fairseq's models put it into ``model.pretrained_model_args`` so that they load without the file of pre-training, and
fairseq hands them a copy of the configuration, so that it never gets into the checkpoint unless the task copies it
back, which ``sentence_prediction`` does not.
"""

from typing import Any

from fairseq.trainer import Trainer
from omegaconf import OmegaConf

FIELD = "pretrained_model_args"


def install() -> None:
    """Wrap ``Trainer.state_dict``."""
    original = Trainer.state_dict

    def state_dict(self) -> dict[str, Any]:
        """fairseq's result with the model's own ``pretrained_model_args``."""
        state = original(self)
        # the model under the wrappers of distributed training
        saved = getattr(getattr(self._model, "cfg", None), FIELD, None)
        model = state["cfg"].get("model") if isinstance(state["cfg"], dict) else None
        if saved is not None and isinstance(model, dict):
            model[FIELD] = OmegaConf.to_container(OmegaConf.create(saved), resolve=True, enum_to_str=True)
        return state

    Trainer.state_dict = state_dict
