"""``d2v plot``: training logs as curves, and masks over a spectrogram, over images and over text."""

import argparse
from pathlib import Path

from d2v_plugin.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register ``d2v plot``."""
    parser = subparsers.add_parser(
        "plot",
        help="draw training logs, or masks over a recording, images or text",
        description="Draw loss, variances and ranks, EMA decay and error rates over updates from fairseq's JSON logs "
        "(common.log_format=json), several runs in one picture; or, with --utterance, --image or --text, "
        "masks drawn as in pre-training over that. Needs matplotlib.",
    )
    parser.add_argument("logs", nargs="*", metavar="LOG", help="hydra_train.log, or NAME=hydra_train.log")
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    masks = parser.add_argument_group("masks")
    masks.add_argument("--mask-from", type=Path, metavar="CHECKPOINT", help="pre-trained model whose masks are drawn")
    masks.add_argument("--seed", type=int, default=1, help="of the masks (default 1)")
    masks.add_argument("--image", type=Path, nargs="+", metavar="FILE", help="images, with --mask-from")
    masks.add_argument("--text", type=Path, metavar="DIR", help="binarised text, with --mask-from")
    masks.add_argument("--split", default="valid", help="of that text (default valid)")
    masks.add_argument("--sequence", type=int, default=0, help="of that split, to begin with (default 0)")
    masks.add_argument("--utterance", type=Path, metavar="WAV", help="audio file")
    picture = parser.add_argument_group("one utterance without --mask-from")
    picture.add_argument("--mask-prob", type=float, help="share of frames in spans (default: 0.65, the base recipe)")
    picture.add_argument("--mask-length", type=int, help="frames a span (default: 10)")
    picture.add_argument("--frame-rate", type=float, default=50.0, help="of the mask (default 50)")
    parser.set_defaults(run=run)


def named_logs(arguments: list[str]) -> list[tuple[str, Path]]:
    """``NAME=path`` or a path; nameless logs are called by their file, or by their folder where files share a name."""
    pairs = [
        argument.split("=", 1) if "=" in argument and not Path(argument).exists() else [None, argument]
        for argument in arguments
    ]
    stems = [Path(path).stem for _, path in pairs]
    return [
        (name or (stem if stems.count(stem) == 1 else Path(path).resolve().parent.name), Path(path))
        for (name, path), stem in zip(pairs, stems, strict=True)
    ]


def _draw_utterance(args: argparse.Namespace) -> Path:
    import torch

    from d2v_plugin.data.audio.io import probe, read_audio
    from d2v_plugin.data.audio.manifest import Entry
    from d2v_plugin.eval.spectrogram import plot_mask
    from d2v_plugin.method.masking import span_mask

    recipe = {"mask_prob": 0.65, "mask_length": 10}
    info = probe(Entry(str(args.utterance), 0))
    rate, frame_rate, field = info.sample_rate, args.frame_rate, round(0.025 * info.sample_rate)
    if args.mask_from is not None:
        from d2v_plugin.eval.load import load_model

        loaded = load_model(args.mask_from)
        if loaded.name == "data2vec_multi":
            return _draw_clones(args, loaded, info.frames)
        cfg = loaded.network.mask_settings
        recipe = {key: cfg.get(key) for key in recipe}
        rate, frame_rate, field = loaded.sample_rate, loaded.frame_rate, loaded.receptive_field
    prob = recipe["mask_prob"] if args.mask_prob is None else args.mask_prob
    length = recipe["mask_length"] if args.mask_length is None else args.mask_length
    if not 0 <= prob <= 1 or length < 1 or frame_rate <= 0:
        raise UserError(
            f"--mask-prob must lie in 0..1, --mask-length and --frame-rate must be positive, got {prob:g}, "
            f"{length}, {frame_rate:g}"
        )
    wave = read_audio(Entry(str(args.utterance), info.frames), rate, shortest=field)
    frames = int((len(wave) - field) * frame_rate / rate) + 1
    try:
        mask = span_mask(
            [frames], frames, prob=prob, span=length, min_masks=1, generator=torch.Generator().manual_seed(args.seed)
        )[0].numpy()
    except ValueError as error:
        raise UserError(str(error)) from error
    title = f"{args.utterance.name}, spans of {1000 * length / frame_rate:.0f} ms"
    return plot_mask(wave, rate, mask, frame_rate, args.out / "mask.png", title, (field - 1) / 2 / rate)


def _draw_clones(args: argparse.Namespace, loaded, listed: int) -> Path:
    from d2v_plugin.cli._mask_pictures import draw_clones
    from d2v_plugin.data.audio.io import read_audio
    from d2v_plugin.data.audio.manifest import Entry

    if (args.mask_prob, args.mask_length) != (None, None):
        raise UserError("--mask-prob and --mask-length are data2vec 1.0's; leave them out with this checkpoint")
    wave = read_audio(Entry(str(args.utterance), listed), loaded.sample_rate, shortest=loaded.receptive_field)
    frames = (len(wave) - loaded.receptive_field) // loaded.stride + 1
    return draw_clones(wave, loaded, frames, args.out, args.utterance.name, args.seed)


def _masks(args: argparse.Namespace) -> list[Path]:
    """Draw every picture of masks that was asked for."""
    from d2v_plugin.cli._mask_pictures import draw_images, draw_text

    if args.mask_from is None and (args.image or args.text):
        raise UserError("--image and --text need --mask-from CHECKPOINT, the pre-trained model whose masks are drawn")
    written = []
    if args.utterance is not None:
        written.append(_draw_utterance(args))
    if args.image:
        written.append(draw_images(args.image, args.mask_from, args.out, args.seed))
    if args.text is not None:
        written.append(draw_text(args.text, args.split, args.sequence, args.mask_from, args.out, args.seed))
    return written


def run(args: argparse.Namespace) -> int:
    """Draw what was asked for and print the files."""
    if not (args.logs or args.utterance or args.image or args.text):
        raise UserError("nothing to draw; give one or more logs, or --utterance, --image or --text")
    from d2v_plugin.eval.logs import read_log
    from d2v_plugin.eval.plots import import_pyplot, plot_runs

    import_pyplot()
    written = []
    if args.logs:
        written += plot_runs([read_log(path, name) for name, path in named_logs(args.logs)], args.out)
    written += _masks(args)
    for path in written:
        print(path)
    return 0
