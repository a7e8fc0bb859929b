"""One recording in, one float32 mono waveform at the wanted sample rate out, or one line that says why not.

Reads whatever libsndfile reads (wav, flac, ogg, mp3, aiff; any bit depth). Channels are averaged, as in fairseq.
fairseq stops on a wrong sample rate; here the recording is resampled (soxr, high quality), unless told not to.
"""

import io
import os
import re
import warnings
from dataclasses import dataclass

import numpy as np

from d2v_plugin.data.audio.manifest import Entry
from d2v_plugin.errors import UserError

KINDS = (
    "missing",
    "empty",
    "not audio",
    "truncated",
    "length differs from the manifest",
    "wrong sample rate",
    "NaN or infinite samples",
    "all zeros",
    "shorter than one frame",
)
# what a streaming writer leaves in a wav header when it never learned the length
UNKNOWN_LENGTHS = range(0x7FFFF000, 0x100000000)
SHORTENED = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
# Lossy decoders may add or drop a few frames, and so may resampling: 10 ms either way is not a wrong size column.
SIZE_TOLERANCE_SECONDS = 0.01


class AudioError(UserError):
    """A recording that cannot be used; ``kind`` is one of KINDS."""

    def __init__(self, kind: str, source: object, detail: str):
        super().__init__(f"{source}: {kind}: {detail}")
        self.kind = kind


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says. ``frames`` counts samples per channel at the file's own rate."""

    sample_rate: int
    channels: int
    frames: int
    subtype: str


def probe(entry: Entry) -> AudioInfo:
    """Read a file's header only (a zip member's bytes are read whole).

    Raises:
        AudioError: missing, empty, not audio, or (wav) cut off before its announced end.
    """
    with _open(entry) as sound:
        _check_whole(sound, entry)
        if sound.frames == 0:
            raise AudioError("empty", entry, "it holds no samples; remove it from the manifest")
        return AudioInfo(sound.samplerate, sound.channels, sound.frames, sound.subtype)


def check_header(entry: Entry, sample_rate: int) -> AudioInfo:
    """``probe``, and the header's length against the manifest's size column, or the segment's end.

    Raises:
        AudioError: as ``read_audio``, as far as a header tells.
    """
    info = probe(entry)
    frames = round(info.frames * sample_rate / info.sample_rate)
    if entry.kind != "segment":
        _check_size(entry, info.frames, info.sample_rate, frames, sample_rate)
    elif entry.start + entry.length > frames + SIZE_TOLERANCE_SECONDS * sample_rate:
        end = entry.start + entry.length
        raise AudioError("truncated", entry, f"the segment ends at frame {end} of {frames}; rebuild the manifest")
    elif entry.length != entry.frames:
        raise AudioError(
            "length differs from the manifest", entry, f"the manifest says {entry.frames}; rebuild the manifest"
        )
    return info


def read_audio(
    entry: Entry, sample_rate: int, *, resample: bool = True, check_size: bool = True, shortest: int = 1
) -> np.ndarray:
    """Read one manifest entry.

    Args:
        entry: what to read; its ``frames`` is what the manifest's size column says.
        sample_rate: of the result, Hz.
        resample: convert other rates; False makes them an error, as in fairseq.
        check_size: compare the length with ``entry.frames``, at the file's own rate or after resampling.
        shortest: fewest samples that make one frame of the model.
    Returns:
        (samples,) float32, contiguous.
    Raises:
        AudioError: one line with the path, the kind of fault and what to change.
    """
    with _open(entry) as sound:
        native_rate = sound.samplerate
        if native_rate != sample_rate and not resample:
            raise AudioError(
                "wrong sample rate", entry, f"{native_rate} Hz, wanted {sample_rate}; convert it or set resample"
            )
        if entry.kind == "segment":
            wave = _read_segment(sound, entry, native_rate / sample_rate)
        else:
            _check_whole(sound, entry)
            wave = _read_frames(sound, entry, sound.frames)
    native_frames = len(wave)
    if wave.ndim == 2:
        wave = wave.mean(axis=1, dtype=np.float32)
    _check_samples(wave, entry)
    if native_rate != sample_rate:
        import soxr

        wave = soxr.resample(wave, native_rate, sample_rate)
    if check_size:
        _check_size(entry, native_frames, native_rate, len(wave), sample_rate)
    if len(wave) < shortest:
        raise AudioError(
            "shorter than one frame", entry, f"{len(wave)} samples, the model needs {shortest}; raise min_sample_size"
        )
    return np.ascontiguousarray(wave, dtype=np.float32)


def _open(entry: Entry):
    """An open soundfile.SoundFile on the entry's bytes."""
    import soundfile

    source = entry.path
    if entry.kind == "zip":
        source = io.BytesIO(_zip_member(entry))
    try:
        return soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, TypeError) as error:
        # TypeError: libsndfile asks for the rate and channels of a file whose suffix says headerless
        reason = str(getattr(error, "error_string", error)).rstrip(".")
    if not os.path.exists(entry.path):
        raise AudioError("missing", entry, "no such file; restore it or rebuild the manifest") from None
    if os.path.isfile(entry.path) and os.path.getsize(entry.path) == 0:
        raise AudioError("empty", entry, "0 bytes; restore it or rebuild the manifest") from None
    raise AudioError("not audio", entry, f"{reason}; restore it or rebuild the manifest") from None


def _zip_member(entry: Entry) -> bytes:
    """The bytes of a stored zip member; fairseq's offset points behind the member's own header."""
    try:
        with open(entry.path, "rb") as archive:
            archive.seek(entry.start)
            data = archive.read(entry.length)
    except FileNotFoundError:
        raise AudioError("missing", entry, "no such archive; restore it or rebuild the manifest") from None
    except OSError as error:
        raise AudioError("missing", entry, f"the archive cannot be read ({error.strerror})") from None
    if not data:
        raise AudioError("empty", entry, "no bytes at this offset; rebuild the manifest")
    if len(data) < entry.length:
        raise AudioError("truncated", entry, f"{len(data)} of {entry.length} bytes; restore the archive")
    return data


def _check_whole(sound, source: object) -> None:
    """libsndfile quietly shortens a wav whose data chunk is cut off, and says so only in its log."""
    match = SHORTENED.search(sound.extra_info)
    if match is None:
        return
    announced, there = int(match[1]), int(match[2])
    if there < announced and announced not in UNKNOWN_LENGTHS:
        raise AudioError("truncated", source, f"{there} of {announced} bytes of samples; restore the file")


def _read_frames(sound, entry: Entry, frames: int) -> np.ndarray:
    import soundfile

    try:
        wave = sound.read(frames, dtype="float32")
    except soundfile.LibsndfileError as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise AudioError("truncated", entry, f"decoding stopped ({reason}); restore the file") from None
    if len(wave) < frames:
        raise AudioError("truncated", entry, f"{len(wave)} of {frames} frames; restore the file")
    if len(wave) == 0:
        raise AudioError("empty", entry, "it holds no samples; restore it or rebuild the manifest")
    return wave


def _read_segment(sound, entry: Entry, scale: float) -> np.ndarray:
    """``scale``: the file's rate over the manifest's, in whose frames the segment is given."""
    start, frames = round(entry.start * scale), round(entry.length * scale)
    if start + frames > sound.frames:
        raise AudioError(
            "truncated", entry, f"the segment ends at frame {start + frames} of {sound.frames}; rebuild the manifest"
        )
    sound.seek(start)
    return _read_frames(sound, entry, frames)


def _check_samples(wave: np.ndarray, entry: Entry) -> None:
    with warnings.catch_warnings():
        # inf - inf: the warning would repeat what the error below says
        warnings.simplefilter("ignore", RuntimeWarning)
        total = wave.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise AudioError("NaN or infinite samples", entry, "restore it or remove it from the manifest")
    if not wave.any():
        raise AudioError("all zeros", entry, "nothing was recorded; remove it from the manifest")


def _check_size(entry: Entry, native_frames: int, native_rate: int, frames: int, sample_rate: int) -> None:
    """The size column may hold the file's own frames (what fairseq's tool writes) or those after resampling."""
    for found, rate in ((native_frames, native_rate), (frames, sample_rate)):
        if abs(found - entry.frames) <= SIZE_TOLERANCE_SECONDS * rate:
            return
    raise AudioError(
        "length differs from the manifest",
        entry,
        f"{native_frames} frames at {native_rate} Hz, the manifest says {entry.frames}; rebuild the manifest",
    )
