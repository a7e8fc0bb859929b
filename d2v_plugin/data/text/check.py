"""What a folder of binarised text holds, and whether its parts belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from d2v_plugin.data.text.binary import TokenFile, open_tokens
from d2v_plugin.data.text.pieces import (
    DICTIONARY_NAME,
    EOS,
    MODEL_NAME,
    SPECIALS,
    UNKNOWN,
    fairseq_ids,
    load_pieces,
    read_symbols,
)
from d2v_plugin.errors import UserError

CHUNK = 1 << 22


def check_folder(folder: Path) -> dict:
    """Read every token.

    Returns:
        ``symbols``; ``splits``: by name ``documents, sequences, longest, tokens, unknown_share``; ``problems``: lines.
    Raises:
        UserError: no such folder, or no dictionary or token files in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: this folder does not exist; give one that `d2v text build` wrote")
    symbols = read_symbols(folder / DICTIONARY_NAME)
    report: dict = {"symbols": len(symbols), "splits": {}, "problems": []}
    names = sorted({path.stem for path in folder.iterdir() if path.suffix in (".bin", ".idx")})
    if not names:
        raise UserError(f"{folder}: holds no .bin and .idx files; write them with `d2v text build`")
    for name in names:
        try:
            found, largest = _count(open_tokens(folder / name))
        except UserError as error:
            report["problems"].append(str(error))
            continue
        report["splits"][name] = found
        if largest >= len(symbols):
            report["problems"].append(
                f"{folder / name}.bin: holds the token {largest} and {DICTIONARY_NAME} ends at {len(symbols) - 1}, so "
                "they do not belong together; put the dictionary of this text there"
            )
    if (folder / MODEL_NAME).is_file():
        processor = load_pieces(folder / MODEL_NAME)
        known = int((fairseq_ids(processor, symbols) >= len(SPECIALS)).sum())
        if known < len(symbols) // 2:
            report["problems"].append(
                f"{folder / MODEL_NAME}: only {known} of its pieces are among the {len(symbols)} symbols of "
                f"{DICTIONARY_NAME}; put the model of this text there"
            )
    return report


def _count(file: TokenFile) -> tuple[dict, int]:
    """Numbers of one split, and its largest token."""
    unknown = largest = 0
    for start in range(0, len(file.tokens), CHUNK):
        chunk = file.tokens[start : start + CHUNK]
        unknown += int((chunk == UNKNOWN).sum())
        largest = max(largest, int(chunk.max()))
    text = len(file.tokens) - len(file)
    ends = np.cumsum(file.sizes, dtype=np.int64)
    alone = ends[file.sizes == 1] - 1
    separators = int((file.tokens[alone] == EOS).sum())
    found = {
        "documents": separators + 1 if len(file) else 0,
        "sequences": len(file),
        "longest": int(file.sizes.max(initial=0)),
        "tokens": len(file.tokens),
        "unknown_share": unknown / text if text else 0.0,
    }
    return found, largest
