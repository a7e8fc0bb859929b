"""Fine-tuning says which checkpoint it wants before it fails inside one.

fairseq's ``wav2vec_ctc`` builds whatever model ``w2v_path`` names and then asks it for its pre-training parts, and it
asserts, with the words "fine-tuning works best", that audio is normalised as in pre-training.
"""

from typing import Any

from fairseq import checkpoint_utils
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.models.wav2vec import wav2vec2_asr
from omegaconf.errors import MissingMandatoryValue

from d2v_plugin.errors import UserError
from d2v_plugin.fairseq_hooks.module_view import ModuleView


def load_pretrained(path: str, arg_overrides: dict | None = None) -> dict[str, Any]:
    """``load_checkpoint_to_cpu`` as ``wav2vec2_asr`` calls it.

    Raises:
        UserError: the file holds a model that cannot be fine-tuned.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(path, arg_overrides)
    cfg = state.get("cfg")
    name = cfg.model.get("_name") if cfg is not None else getattr(state.get("args"), "arch", None)
    kind = MODEL_REGISTRY.get(name) or ARCH_MODEL_REGISTRY.get(name)
    if kind is None:
        raise UserError(f"model.w2v_path={path} holds a model called {name}, which is not known here; check the path")
    if not hasattr(kind, "remove_pretraining_modules"):
        raise UserError(
            f"model.w2v_path={path} holds a {name}, which is not a pre-trained speech model; pass a checkpoint of "
            "pre-training (to go on with a fine-tuned one, use checkpoint.finetune_from_model)"
        )
    return state


def install() -> None:
    """Check ``w2v_path`` and ``normalize`` where ``wav2vec2_asr`` uses them."""
    encoder = wav2vec2_asr.Wav2VecEncoder
    original = encoder.__init__

    def __init__(self, cfg, output_size=None):
        try:
            original(self, cfg, output_size)
        except MissingMandatoryValue as error:
            if error.full_key != "w2v_path":
                raise
            raise UserError(
                "model.w2v_path is not set; give a checkpoint of pre-training, model.w2v_path=FILE.pt"
            ) from error
        except AssertionError as error:
            if "data normalization" not in str(error):
                raise
            raise UserError(
                f"task.normalize={cfg.normalize} differs from pre-training; set task.normalize={not cfg.normalize}"
            ) from error

    encoder.__init__ = __init__
    wav2vec2_asr.checkpoint_utils = ModuleView(checkpoint_utils, load_checkpoint_to_cpu=load_pretrained)
