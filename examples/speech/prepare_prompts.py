"""Prepare recorded speech for the demo: Debian's telephone prompts, or your own recordings.

    python examples/speech/prepare_prompts.py --dest DIR
    python examples/speech/prepare_prompts.py --dest DIR --languages en fr es it ru
    python examples/speech/prepare_prompts.py --dest DIR --data /path/to/wavs

The first fetches the package asterisk-core-sounds-en-wav (one speaker, 25 minutes, 8 kHz, CC-BY-SA-3.0) and, for the
transcripts, asterisk-core-sounds-en with ``apt-get download`` and unpacks them with ``dpkg -x``; neither needs root.

Written below DIR: ``wav/`` (16-bit, mono, resampled), ``{train,valid,test}.{tsv,ltr,wrd}``, ``dict.ltr.txt`` and
``pretrain.tsv`` (the training part of the English prompts and every other language asked for). The division depends on
the normalised text only, so that no sentence stands on both sides: a tenth of the texts each go to test and valid.
"""

import argparse
import gzip
import re
import sys
from collections import Counter
from pathlib import Path

from d2v_plugin.data.audio.building import Recording, divide, find_files, segments, threaded, write_splits
from d2v_plugin.data.audio.io import AudioError, read_audio
from d2v_plugin.data.audio.manifest import Entry, write_manifest
from d2v_plugin.data.audio.transcripts import TABLES, normalise, read_transcripts, spell_numbers
from d2v_plugin.data.debian import fetch_packages
from d2v_plugin.errors import UserError

INSTEAD = "or use recordings of your own: make demo DATA=/path/to/wavs"
LANGUAGES = ("en", "fr", "es", "it", "ru")
TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
SHARES = {"test": 0.1, "valid": 0.1}
SHORTEST_SECONDS = 0.3
LONGEST_SECONDS = 30.0  # longer recordings without a transcript are listed in pieces
NOT_SPOKEN = re.compile(r"\[[^]]*\]|<[^>]*>|\([^)]*\)")
# names of prompts that are tones, noises or silence, in every language
NO_SPEECH = re.compile(r"silence/|beep|.*2tone$|tt-monkeys$|confbridge-(join|leave)$")
# the note beside its transcript says that the digit is not read
READ_DIFFERENTLY = {"spy-iax2": "IAX"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dest", required=True, type=Path, help="folder to write to")
    parser.add_argument("--languages", nargs="+", default=["en"], choices=LANGUAGES, help="prompts for pretrain.tsv")
    parser.add_argument("--data", type=Path, help="your own recordings instead of the prompts")
    parser.add_argument("--sample-rate", type=int, default=16000)
    args = parser.parse_args(argv)
    try:
        dest = args.dest.resolve()
        dest.mkdir(parents=True, exist_ok=True)
        if args.data is not None:
            if not args.data.is_dir():
                raise UserError(f"{args.data} is not a folder; give the one that holds your recordings")
            prepare_own(args.data.resolve(), dest, args.sample_rate)
        else:
            prepare_prompts(dest, args.languages, args.sample_rate)
    except UserError as error:
        print(f"prepare_prompts: error: {error}", file=sys.stderr)
        return 2
    return 0


def prepare_prompts(dest: Path, languages: list[str], sample_rate: int) -> None:
    """Fetch, convert and list the prompts; other languages than English only go to ``pretrain.tsv``."""
    packages = ["asterisk-core-sounds-en", "asterisk-core-sounds-en-wav"]
    packages += [f"asterisk-core-sounds-{language}-wav" for language in languages if language != "en"]
    unpacked = fetch_packages(packages, dest, INSTEAD)
    print("The English prompts are recorded by Allison Smith, licence CC-BY-SA-3.0.")
    texts = prompt_texts(unpacked / TRANSCRIPTS)

    sounds = unpacked / "usr/share/asterisk/sounds"
    left_out = Counter()
    english = convert(prompt_folder(sounds, "en"), dest / "wav" / "en", sample_rate, left_out, speech)
    recordings = []
    for name, frames in english:
        text = texts.get(name.removesuffix(".wav"))
        if text:
            recordings.append(Recording(f"en/{name}", frames, key=text, text=text))
        else:
            left_out["no transcript of speech"] += 1
    splits = divide(recordings, SHARES)
    write_splits(dest, dest / "wav", splits)

    pretraining = [(recording.name, recording.frames) for recording in splits["train"]]
    for language in languages:
        if language != "en":
            folder = prompt_folder(sounds, language)
            found = convert(folder, dest / "wav" / language, sample_rate, left_out, speech)
            pretraining += [(f"{language}/{name}", frames) for name, frames in found]
    write_manifest(dest / "pretrain.tsv", dest / "wav", pretraining)
    report(dest, splits, left_out, sample_rate)
    minutes = sum(frames for _, frames in pretraining) / sample_rate / 60
    print(f"pretrain.tsv: {len(pretraining)} recordings, {minutes:.1f} min ({' '.join(languages)})")


def prepare_own(data: Path, dest: Path, sample_rate: int) -> None:
    """The user's recordings, with their transcripts where there are any."""
    left_out = Counter()
    texts = own_texts(data)
    converted = convert(data, dest / "wav", sample_rate, left_out)
    recordings = []
    for name, frames in converted:
        if not texts:
            pieces = segments(name, frames, round(LONGEST_SECONDS * sample_rate))
            recordings += [Recording(piece, size, key=name) for piece, size in pieces]
        elif text := texts.get(str(Path(name).with_suffix(""))):
            recordings.append(Recording(name, frames, key=text, text=text))
        else:
            left_out["no transcript"] += 1
    if not recordings:
        raise UserError(f"{data}: no recording is left ({listed(left_out)}); do the transcripts name these files?")
    splits = divide(recordings, SHARES if texts else {"valid": SHARES["valid"]})
    if not splits["valid"]:
        raise UserError(f"{data}: needs at least two different recordings, one to train on and one to validate")
    write_splits(dest, dest / "wav", splits)
    write_manifest(dest / "pretrain.tsv", dest / "wav", ((r.name, r.frames) for r in splits["train"]))
    if not texts:
        remedy = "put a .csv, .tsv or .jsonl with the fields path and text there, or a .txt beside each recording"
        print(f"{data}: no transcripts found, so these manifests serve pre-training only; for fine-tuning {remedy}")
    report(dest, splits, left_out, sample_rate)


def prompt_folder(sounds: Path, language: str) -> Path:
    """``sounds`` holds one folder per recorded voice, named like ``en_US_f_Allison``; links only rename them."""
    folders = [p for p in sorted(sounds.glob(f"{language}*")) if p.is_dir() and not p.is_symlink()]
    if not folders:
        raise UserError(f"{sounds}: holds no folder for {language!r}; delete the unpacked folder and run this again")
    return folders[0]


def prompt_texts(path: Path) -> dict[str, str]:
    """Normalised transcripts by prompt name, from ``name: text`` lines; what is not speech gets an empty text."""
    texts = {}
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, colon, text = line.strip().partition(":")
            if not line.startswith(";") and colon:
                text = READ_DIFFERENTLY.get(name, NOT_SPOKEN.sub(" ", text))
                texts[name] = normalise(spell_numbers(text.replace("*", " star ").replace("#", " pound ")))
    return texts


def own_texts(data: Path) -> dict[str, str]:
    """Normalised transcripts by path without suffix: from tables in the folder, else from a .txt beside a recording."""
    texts = {}
    for table in sorted(path for path in data.iterdir() if path.suffix in TABLES):
        for name, text in read_transcripts(table).items():
            place = Path(name)
            place = place.relative_to(data) if place.is_absolute() and place.is_relative_to(data) else place
            texts[str(place.with_suffix(""))] = normalise(text)
    if not texts:
        for path in data.rglob("*.txt"):
            words = normalise(path.read_text(encoding="utf-8", errors="replace"))
            texts[str(path.relative_to(data).with_suffix(""))] = words
        names = {str(Path(name).with_suffix("")) for name in find_files(data)}
        # a README.txt is no transcript
        texts = {name: words for name, words in texts.items() if name in names}
    return texts


def speech(name: str) -> bool:
    return NO_SPEECH.match(name.removesuffix(".wav")) is None


def convert(source: Path, dest: Path, sample_rate: int, left_out: Counter, wanted=None) -> list[tuple[str, int]]:
    """16-bit mono wavs of every usable recording below ``source``, as (name below ``dest``, frames)."""
    import soundfile

    names = find_files(source)
    chosen = [name for name in names if wanted is None or wanted(name)]
    if len(chosen) < len(names):
        left_out["no speech"] += len(names) - len(chosen)

    def one(name):
        target = Path(name).with_suffix(".wav")
        try:
            wave = read_audio(Entry(str(source / name), 0), sample_rate, check_size=False)
        except AudioError as error:
            print(f"left out {error}")
            return error.kind
        if len(wave) < SHORTEST_SECONDS * sample_rate:
            return f"shorter than {SHORTEST_SECONDS} s"
        (dest / target).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(dest / target, wave.clip(-1, 1), sample_rate, subtype="PCM_16")
        return str(target), len(wave)

    found = []
    for result in threaded(one, chosen, "converted"):
        if isinstance(result, str):
            left_out[result] += 1
        else:
            found.append(result)
    return found


def report(dest: Path, splits: dict[str, list[Recording]], left_out: Counter, sample_rate: int) -> None:
    for split, recordings in splits.items():
        minutes = sum(recording.frames for recording in recordings) / sample_rate / 60
        print(f"{dest / split}.tsv: {len(recordings)} recordings, {minutes:.1f} min")
    print(f"left out: {listed(left_out)}")


def listed(counts: Counter) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"


if __name__ == "__main__":
    sys.exit(main())
