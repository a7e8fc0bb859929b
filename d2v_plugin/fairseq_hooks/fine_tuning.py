"""Fine-tuning says which checkpoint it wants before it fails inside one, and its settings reach 2.0, too.

fairseq's ``wav2vec_ctc`` builds whatever model ``w2v_path`` names and then asks it for its pre-training parts. It
asserts, with the words "fine-tuning works best", that audio is normalised as in pre-training, and for a 2.0 model,
without a word, that it is normalised at all. Its ``drop_path`` names a field that 2.0 does not have.
"""

import os
from typing import Any

from fairseq import checkpoint_utils
from fairseq.criterions import ctc
from fairseq.file_io import PathManager
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.models.wav2vec import wav2vec2_asr
from omegaconf import DictConfig, OmegaConf, open_dict

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.fairseq_hooks.module_view import ModuleView
from d2v_plugin.fine_tuning.speech_settings import normalized_in_pretraining, override
from d2v_plugin.rebuild import check_modality, configuration

MULTI = "data2vec_multi"
WITHOUT = "leave it out, criterion.wer_kenlm_model=null, and score the trained model with `d2v eval-ctc --lexicon --lm`"


def load_pretrained(path: str, arg_overrides: dict | None = None) -> dict[str, Any]:
    """``load_checkpoint_to_cpu`` as ``wav2vec2_asr`` calls it.

    fairseq's overrides reach the fields that the checkpoint spells out; here also those it leaves at their default.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(path, arg_overrides)
    cfg = state.get("cfg")
    if cfg is not None and arg_overrides:
        with open_dict(cfg):
            override(cfg.model, arg_overrides)
    return state


def check(cfg: Any, pretraining: DictConfig, where: str) -> None:
    """Refuse what cannot be fine-tuned, or not with these settings.

    Args:
        cfg: of ``wav2vec_ctc`` or ``wav2vec_seq2seq``.
        pretraining: the configuration in the checkpoint that ``where`` names.
    Raises:
        UserError: one line on what to change.
    """
    name = str(pretraining.model.get("_name") or pretraining.model.get("arch"))
    kind = MODEL_REGISTRY.get(name) or ARCH_MODEL_REGISTRY.get(name)
    if kind is None:
        raise UserError(f"{where} holds a model called {name}, which is not known here; check the path")
    hears = name == MULTI or pretraining.model.get("conv_feature_layers") is not None
    if not hasattr(kind, "remove_pretraining_modules") or not hears:
        raise UserError(
            f"{where} holds a {name}, which is not a pre-trained speech model; pass a checkpoint of "
            "pre-training (to go on with a fine-tuned one, use +checkpoint.init_from=FILE)"
        )
    if name == MULTI:
        check_modality(pretraining, "AUDIO", where)
    trained = bool(normalized_in_pretraining(pretraining))
    if trained != bool(cfg.normalize):
        raise UserError(
            f"task.normalize={cfg.normalize} differs from pre-training ({where}); set task.normalize={trained}"
        )
    if name != MULTI and getattr(cfg, "layer_decay", 1) < 1:
        raise UserError(f"model.layer_decay is for data2vec 2.0, and {where} holds a {name}; leave it out")
    if name == MULTI and getattr(cfg, "load_ema", False):
        raise UserError(f"model.load_ema is for data2vec 1.0, and {where} holds a {name}; leave it out")


def _pretraining(cfg: Any) -> tuple[DictConfig | None, str]:
    """The configuration of pre-training, and where it is from; None where only fairseq knows how to read it."""
    if cfg.w2v_args is not None:
        return (cfg.w2v_args if OmegaConf.is_config(cfg.w2v_args) else None), "the checkpoint"
    if OmegaConf.is_config(cfg) and OmegaConf.is_missing(cfg, "w2v_path"):
        raise UserError("model.w2v_path is not set; give a checkpoint of pre-training, model.w2v_path=FILE.pt")
    if PathManager.path_requires_pathmanager(cfg.w2v_path):
        return None, cfg.w2v_path
    # Tensors stay in the file: this costs nothing beside the loading that follows.
    state = read_checkpoint(cfg.w2v_path, keys=("model",), verify=False)
    return configuration(state, cfg.w2v_path), f"model.w2v_path={cfg.w2v_path}"


def _explain_language_model() -> None:
    """fairseq's ``ctc`` decodes with a language model in validation through code that its packages do not install."""
    original = ctc.CtcCriterion.__init__

    def __init__(self, cfg, task, rdrop_alpha=0.0):
        for key in ("wer_kenlm_model", "wer_lexicon"):
            path = getattr(cfg, key) if cfg.wer_kenlm_model else None
            if path and not os.path.isfile(path):
                raise UserError(f"criterion.{key}={path} does not exist; correct the path, or {WITHOUT}")
        try:
            original(self, cfg, task, rdrop_alpha)
        except (ImportError, NameError) as error:  # the second where its module is there without flashlight
            if not cfg.wer_kenlm_model:
                raise
            needs = f"criterion.wer_kenlm_model needs a decoder that is not installed ({error})"
            raise UserError(f"{needs}; {WITHOUT}") from error

    ctc.CtcCriterion.__init__ = __init__


def install() -> None:
    """Check the checkpoint and the settings where ``wav2vec2_asr`` uses them."""
    encoder = wav2vec2_asr.Wav2VecEncoder
    original = encoder.__init__

    def __init__(self, cfg, output_size=None):
        pretraining, where = _pretraining(cfg)
        if pretraining is not None:
            check(cfg, pretraining, where)
        if pretraining is None or cfg.normalize or pretraining.model.get("_name") != MULTI:
            return original(self, cfg, output_size)
        # fairseq takes no 2.0 model for audio that is not normalised; this one was pre-trained so
        wanted, cfg.normalize = cfg.normalize, True
        try:
            original(self, cfg, output_size)
        finally:
            cfg.normalize = wanted

    encoder.__init__ = __init__
    _explain_language_model()
    wav2vec2_asr.checkpoint_utils = ModuleView(checkpoint_utils, load_checkpoint_to_cpu=load_pretrained)
