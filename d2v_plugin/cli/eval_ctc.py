"""``d2v eval-ctc``: decode a manifest with a fine-tuned model and print word and character error rates."""

import argparse
import json
import time
from pathlib import Path

from d2v_plugin.cli._model_options import add_model_options, check_model_options, open_model, print_model
from d2v_plugin.errors import UserError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register ``d2v eval-ctc``."""
    parser = subparsers.add_parser(
        "eval-ctc",
        help="decode a manifest and print WER and CER",
        description="Decode a manifest with a CTC model (fairseq's wav2vec_ctc on data2vec_audio): greedily, or with "
        "--lexicon and --lm by beam search. References come from the .ltr file beside the manifest.",
    )
    parser.add_argument("checkpoint", type=Path, help="fine-tuned checkpoint, checkpoint_best.pt")
    parser.add_argument("manifest", type=Path, help="fairseq manifest, test.tsv")
    parser.add_argument("--labels", type=Path, help="letter file, one line a recording (default: beside the manifest)")
    parser.add_argument("--out", type=Path, help="write id, path, reference and hypothesis, separated by tabs")
    parser.add_argument("--json", type=Path, help="write the numbers as JSON")
    add_model_options(parser)
    search = parser.add_argument_group("beam search")
    search.add_argument("--lexicon", type=Path, help="lines of WORD<tab>l e t t e r s |")
    search.add_argument("--lm", type=Path, help="n-gram model over the lexicon's words, ARPA or KenLM binary")
    search.add_argument(
        "--decoder",
        choices=("auto", "flashlight", "python"),
        default="auto",
        help="flashlight-text (pip install flashlight-text), or plain Python: slower, ARPA only; auto: what is there",
    )
    search.add_argument("--beam", type=int, default=100, help="hypotheses kept (default 100)")
    search.add_argument("--beam-threshold", type=float, default=25.0, help="score behind the best kept (default 25)")
    search.add_argument("--lm-weight", type=float, default=2.0, help="weight of log10 p_lm (default 2)")
    search.add_argument("--word-score", type=float, default=-1.0, help="added for each word (default -1)")
    parser.set_defaults(run=run)


def _search(args: argparse.Namespace, symbols: list[str]):
    """What turns log-probabilities into text, and how to call it; None is greedy decoding."""
    if args.lexicon is None:
        return None, "greedily"
    from d2v_plugin.eval.beam import make_decoder
    from d2v_plugin.eval.lexicon import BeamOptions

    options = BeamOptions(args.beam, args.beam_threshold, args.lm_weight, args.word_score)
    name, decoder = make_decoder(args.decoder, symbols, args.lexicon, args.lm, options)
    return decoder, f"with a beam of {args.beam} ({name})"


def _check(args: argparse.Namespace) -> None:
    if args.lm is not None and args.lexicon is None:
        raise UserError("--lm scores words and needs --lexicon to know them; give both")
    if args.beam < 1:
        raise UserError(f"--beam must be at least 1, got {args.beam}")
    check_model_options(args)


def _write_table(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in [("id", "path", "reference", "hypothesis"), *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _decode(args: argparse.Namespace, loaded, utterances) -> tuple[dict, dict]:
    """({position in the manifest: hypothesis}, what is known of the decoding); prints the second."""
    from d2v_plugin.eval.decode import decode
    from d2v_plugin.eval.progress import progress

    beam, how = _search(args, loaded.symbols)
    print_model(loaded, args.max_seconds)
    start = time.monotonic()
    decoded = decode(loaded, utterances, args.max_seconds, beam)
    found = {h.index: h for h in progress(decoded, len(utterances), "decoded")}
    took = time.monotonic() - start
    seconds = sum(h.seconds for h in found.values())
    print(f"decoded {len(found)} recordings, {seconds:.1f} s of audio, {how} in {took:.1f} s")
    for line in utterances.losses():
        print(line)
    return found, {
        "checkpoint": str(args.checkpoint),
        "manifest": str(args.manifest),
        "decoder": how,
        "recordings": len(found),
        "skipped": utterances.bad.count(),
        "left_out_by_length": utterances.manifest.skipped,
        "audio_seconds": round(seconds, 2),
        "decode_seconds": round(took, 2),
    }


def _score(references: list[str], hypotheses: list[str]) -> dict:
    """The error rates in percent and what they were counted over; prints them."""
    from d2v_plugin.eval.scoring import score

    scores = score(references, hypotheses)
    print(scores.words.describe("WER", "words"))
    print(scores.characters.describe("CER", "characters"))
    return {
        "wer": 100 * scores.words.rate,
        "cer": 100 * scores.characters.rate,
        "words": scores.words.units,
        "characters": scores.characters.units,
    }


def run(args: argparse.Namespace) -> int:
    """Decode, print, write."""
    _check(args)
    from d2v_plugin.eval.load import CTC
    from d2v_plugin.eval.utterances import read_references, utterances_for

    loaded = open_model(args, args.manifest, want=CTC)
    utterances = utterances_for(loaded, args.manifest, args.max_bad)
    references = read_references(utterances.manifest, args.labels)
    found, numbers = _decode(args, loaded, utterances)
    order = sorted(found)
    if references is None:
        print(f"no {args.manifest.with_suffix('.ltr').name} beside the manifest, so nothing is scored; give --labels")
    else:
        numbers |= _score([references[i] for i in order], [found[i].text for i in order])
    if args.out:
        names, texts = utterances.manifest.name, references or [""] * len(utterances)
        _write_table(args.out, [(utterances.ids[i], names(i), texts[i], found[i].text) for i in order])
        print(f"hypotheses: {args.out}")
    elif references is None:
        for i in order:
            print(f"{utterances.ids[i]}\t{found[i].text}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return 0
