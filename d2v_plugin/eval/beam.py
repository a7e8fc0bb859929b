"""CTC beam search with a lexicon and an n-gram language model.

Why flashlight-text (looked at in November 2026): its 0.0.7 wheels (Linux x86-64, CPython 3.11 and 3.12) bring KenLM
inside, so ARPA and KenLM binary files work after one ``pip install`` and no compiler. ``pyctcdecode`` pins numpy below
2 and needs ``kenlm``, which is on PyPI as source only; torchaudio's ctc_decoder is itself a layer over
flashlight-text. CPython 3.13 has no wheel: there, and wherever flashlight-text is not installed, a search in plain
Python takes its place. It reads ARPA only and is a few times slower; both find the best sentence when the beam is wide
enough, and may differ where it cuts.

A sentence scores  log p_ctc + lm_weight * log10 p_lm + word_score * words  (flashlight's definition), where p_ctc is
that of its best alignment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from d2v_plugin.errors import UserError
from d2v_plugin.eval.lexicon import BeamOptions


def make_decoder(
    name: str, symbols: Sequence[str], lexicon: Path, lm: Path | None, options: BeamOptions
) -> tuple[str, Callable[[np.ndarray], str]]:
    """The search by name, and what turns (T, V) log-probabilities into text.

    Args:
        name: ``flashlight``, ``python``, or ``auto`` for the first that is installed.
    Raises:
        UserError: flashlight-text is asked for and missing, or a file does not fit.
    """
    from d2v_plugin.eval.beam_flashlight import FlashlightDecoder, import_flashlight
    from d2v_plugin.eval.beam_python import PythonDecoder

    if name == "auto":
        try:
            import_flashlight()
        except UserError:
            name = "python"
        else:
            name = "flashlight"
    decoder = FlashlightDecoder if name == "flashlight" else PythonDecoder
    return name, decoder(symbols, lexicon, lm, options)
