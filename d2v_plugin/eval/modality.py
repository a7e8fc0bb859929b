"""What kind of data the model of a checkpoint is for, from its configuration alone."""

from __future__ import annotations

from pathlib import Path

from d2v_plugin.checkpoints import read_checkpoint
from d2v_plugin.errors import UserError
from d2v_plugin.modalities import modality_name
from d2v_plugin.rebuild import configuration

AUDIO, IMAGE, TEXT = "AUDIO", "IMAGE", "TEXT"
BY_MODEL = {
    "data2vec_audio": AUDIO,
    "wav2vec2": AUDIO,
    "wav2vec_ctc": AUDIO,
    "data2vec_vision": IMAGE,
    "mae": IMAGE,
    "data2vec_text": TEXT,
}


def modality_of(checkpoint: Path) -> str:
    """AUDIO, IMAGE or TEXT.

    Raises:
        UserError: a model of another kind, or one of several modalities.
    """
    cfg = configuration(read_checkpoint(checkpoint, keys=("model",), verify=False), checkpoint)
    name = str(cfg.model.get("_name") or cfg.model.get("arch"))
    if name in BY_MODEL:
        return BY_MODEL[name]
    found = cfg.model.get("supported_modality")
    if name == "data2vec_multi" and found is not None and modality_name(found) in (AUDIO, IMAGE, TEXT):
        return modality_name(found)
    what = "a model of several modalities" if name == "data2vec_multi" else f"a {name!r} model"
    raise UserError(
        f"{checkpoint} holds {what}; name what it is probed with, --modality audio, image or text"
        if name == "data2vec_multi"
        else f"{checkpoint} holds {what}; probes take {', '.join(sorted(BY_MODEL))} and data2vec_multi"
    )
