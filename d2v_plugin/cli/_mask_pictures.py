"""``d2v plot``: masks of a checkpoint over images, over binarised text, and beside a spectrogram."""

import logging
from pathlib import Path

from d2v_plugin.errors import UserError

MOST_MASKS = 8  # that a picture shows
EPOCHS = 4  # of 1.0, which masks an image once in each
TOKENS = 110  # of a text that is drawn
BLANK, END = "\u2581", "\u00b6"  # sentencepiece's mark of a word's beginning, and what an end of text is drawn as


def draw_images(files: list[Path], checkpoint: Path, out: Path, seed: int) -> Path:
    """``image_mask.png``: each file as the model sees it, and under masks of its settings."""
    from d2v_plugin.data.images.geometry import CropRule
    from d2v_plugin.data.images.io import decode
    from d2v_plugin.eval.image_features import MODALITY, ImageInput, load_image_model
    from d2v_plugin.eval.mask_pictures import draw_masks, plot_image_masks

    # fairseq opens the root logger, and Pillow tells about every block it reads
    logging.getLogger("PIL").setLevel(logging.WARNING)
    model, cfg = load_image_model(checkpoint)
    sees = ImageInput.of(cfg.task)
    choose = CropRule(sees.input_size, plain=sees.no_transform, training=False).chooser()
    options = {"orient": sees.exif_orientation, "max_pixels": sees.max_image_pixels}
    images = [decode(file.read_bytes(), file, choose, **options) for file in files]
    if hasattr(model, "modality_encoders"):
        drawer, clones = model.modality_encoders[MODALITY], _clones(cfg)
        patches = (sees.input_size // drawer.modality_cfg.patch_size) ** 2
    else:
        drawer, clones, patches = model.masks, EPOCHS, model.masks.side**2
    masks = draw_masks(drawer, patches, len(files), clones, seed)
    title = files[0].name if len(files) == 1 else f"{len(files)} images"
    return plot_image_masks(images, list(masks), out / "image_mask.png", title)


def draw_text(data: Path, split: str, first: int, checkpoint: Path, out: Path, seed: int) -> Path:
    """``token_mask.png``: text of a split, from sequence ``first`` on, once under each of three masks."""
    import numpy as np

    from d2v_plugin.data.text.binary import open_tokens
    from d2v_plugin.data.text.pieces import EOS
    from d2v_plugin.eval.mask_pictures import draw_masks, plot_token_masks
    from d2v_plugin.eval.text_features import load_text_model

    tokens = open_tokens(data / split)
    if not 0 <= first < len(tokens):
        raise UserError(f"--sequence must be 0 to {len(tokens) - 1}, the sequences of {data / split}, got {first}")
    loaded = load_text_model(checkpoint, data)
    length, ids = min(TOKENS, loaded.longest), []
    for sequence in tokens.sequences(first):
        ids += sequence.tolist()
        if len(ids) >= length:
            break
    ids = np.array(ids[:length])
    symbols = loaded.tokenizer.symbols
    pieces = [END if number == EOS else symbols[number].replace(BLANK, " ") for number in ids]
    masks = draw_masks(loaded.masker, len(ids), 1, 3, seed)[0]
    return plot_token_masks(pieces, masks, out / "token_mask.png", f"{split}, sequence {first}")


def draw_clones(wave, loaded, frames: int, out: Path, title: str, seed: int) -> Path:
    """``mask.png``: a spectrogram with the masks of a ``data2vec_multi`` model, one stripe each.

    Args:
        wave: (N,) samples at the model's rate.
        loaded: ``LoadedModel``.
        frames: of the model in that recording.
    """
    from d2v_plugin.eval.mask_pictures import draw_masks, plot_spectrogram_masks

    masks = draw_masks(loaded.network.audio, frames, 1, _clones(loaded.cfg), seed)[0]
    centre = (loaded.receptive_field - 1) / 2 / loaded.sample_rate
    return plot_spectrogram_masks(wave, loaded.sample_rate, masks, loaded.frame_rate, out / "mask.png", title, centre)


def _clones(cfg) -> int:
    return min(MOST_MASKS, int(cfg.model.get("clone_batch") or 1))
