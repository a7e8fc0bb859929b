"""Recordings of every kind, good and bad."""

import zipfile

import numpy as np
import pytest
import soundfile as sf
from audio_corpus import RATE, tone

from d2v_plugin.data.audio.io import KINDS, AudioError, probe, read_audio
from d2v_plugin.data.audio.manifest import Entry, parse_entry


def fault(entry, **options):
    with pytest.raises(AudioError) as caught:
        read_audio(entry, RATE, **options)
    message = str(caught.value)
    assert "\n" not in message and entry.path in message
    assert caught.value.kind in KINDS
    return caught.value.kind


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
def test_bit_depths(corpus, subtype):
    path = corpus.add("a.wav", subtype=subtype)
    wave = read_audio(Entry(str(path), 4000), RATE)
    assert wave.dtype == np.float32 and wave.shape == (4000,)
    assert np.abs(wave - tone(4000)).max() <= (2**-15 if subtype == "PCM_16" else 2**-23)


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.aiff"])
def test_formats(corpus, name):
    path = corpus.add(name)
    assert len(read_audio(Entry(str(path), 4000), RATE)) == 4000


def test_stereo_is_averaged(corpus):
    left, right = tone(4000, 1), tone(4000, 2)
    path = corpus.add("a.wav", wave=np.stack([left, right], 1), subtype="FLOAT")
    assert np.array_equal(read_audio(Entry(str(path), 4000), RATE), (left + right) / 2)


@pytest.mark.parametrize("rate", [48000, 44100, 8000])
@pytest.mark.parametrize("listed_at", ["own rate", "wanted rate"])
def test_other_rates_are_converted(corpus, rate, listed_at):
    path = corpus.add("a.wav", samples=rate, rate=rate)
    entry = Entry(str(path), rate if listed_at == "own rate" else RATE)
    wave = read_audio(entry, RATE)
    assert len(wave) == RATE
    # the tone stays where it was
    spectrum, wanted = np.abs(np.fft.rfft(wave)), np.abs(np.fft.rfft(tone(rate, 0, rate)))[: RATE // 4]
    assert abs(int(spectrum[: RATE // 4].argmax()) - int(wanted.argmax())) <= 1


def test_other_rate_without_resampling(corpus):
    path = corpus.add("a.wav", rate=48000)
    assert fault(Entry(str(path), 4000), resample=False) == "wrong sample rate"


def test_zip_member_and_segment_are_bit_exact(corpus):
    path = corpus.add("long.flac", samples=20000)
    whole = read_audio(Entry(str(path), 20000), RATE)
    with zipfile.ZipFile(corpus.folder / "z.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("first.txt", "something else")
        archive.write(path, "long.flac")
        info = archive.getinfo("long.flac")
    data = (corpus.folder / "z.zip").read_bytes()
    offset = data.index(b"fLaC")
    member = parse_entry(f"{corpus.folder}/z.zip:{offset}:{info.file_size}", 20000)
    assert np.array_equal(read_audio(member, RATE), whole)
    segment = parse_entry(f"{path}:7000:5000", 5000)
    assert np.array_equal(read_audio(segment, RATE), whole[7000:12000])


def test_segment_of_another_rate_is_given_in_wanted_frames(corpus):
    path = corpus.add("long.wav", samples=48000, rate=48000, subtype="FLOAT")
    wave = read_audio(parse_entry(f"{path}:8000:4000", 4000), RATE)
    assert len(wave) == 4000


def test_bad_slices(corpus):
    path = corpus.add("long.wav", samples=9000)
    assert fault(parse_entry(f"{path}:8000:4000", 4000)) == "truncated"
    assert fault(parse_entry(f"{corpus.folder}/no.zip:0:10", 4000)) == "missing"
    with zipfile.ZipFile(corpus.folder / "z.zip", "w") as archive:
        archive.write(path, "long.wav")
    assert fault(parse_entry(f"{corpus.folder}/z.zip:999999:10", 4000)) == "empty"
    assert fault(parse_entry(f"{corpus.folder}/z.zip:10:999999", 4000)) == "truncated"
    assert fault(parse_entry(f"{corpus.folder}/z.zip:3:500", 4000)) == "not audio"


def test_missing_empty_and_not_audio(tmp_path):
    assert fault(Entry(str(tmp_path / "no.wav"), 10)) == "missing"
    (tmp_path / "empty.wav").touch()
    assert fault(Entry(str(tmp_path / "empty.wav"), 10)) == "empty"
    sf.write(tmp_path / "nothing.wav", np.zeros(0, np.float32), RATE)
    assert fault(Entry(str(tmp_path / "nothing.wav"), 10)) == "empty"
    (tmp_path / "text.wav").write_text("not a recording")
    assert fault(Entry(str(tmp_path / "text.wav"), 10)) == "not audio"
    (tmp_path / "headerless.raw").write_bytes(b"\0\1" * 100)
    assert fault(Entry(str(tmp_path / "headerless.raw"), 10)) == "not audio"
    assert fault(Entry(str(tmp_path), 10)) == "not audio"


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_truncated(corpus, name):
    path = corpus.add(name, samples=16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert fault(Entry(str(path), 16000)) == "truncated"


def test_wav_streamed_without_a_length_is_whole(corpus):
    path = corpus.add("a.wav")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(read_audio(Entry(str(path), 4000), RATE)) == 4000


@pytest.mark.parametrize("listed", [1000, 3839, 4161, 64000])
def test_size_column_that_lies(corpus, listed):
    path = corpus.add("a.wav", samples=4000)
    assert fault(Entry(str(path), listed)) == "length differs from the manifest"
    assert len(read_audio(Entry(str(path), listed), RATE, check_size=False)) == 4000


def test_ten_milliseconds_are_not_a_lie(corpus):
    path = corpus.add("a.wav", samples=4000)
    assert len(read_audio(Entry(str(path), 4160), RATE)) == 4000


@pytest.mark.parametrize(
    ("value", "kind"),
    [(np.nan, "NaN or infinite samples"), (np.inf, "NaN or infinite samples"), (-np.inf, "NaN or infinite samples")],
)
def test_samples_that_are_not_finite(corpus, value, kind):
    wave = tone(4000)
    wave[7] = value
    path = corpus.add("a.wav", wave=wave, subtype="FLOAT")
    assert fault(Entry(str(path), 4000)) == kind


def test_all_zeros(corpus):
    path = corpus.add("a.wav", wave=np.zeros(4000, np.float32))
    assert fault(Entry(str(path), 4000)) == "all zeros"


def test_shorter_than_one_frame(corpus):
    path = corpus.add("a.wav", samples=399)
    assert fault(Entry(str(path), 399), shortest=400) == "shorter than one frame"
    assert len(read_audio(Entry(str(path), 399), RATE, shortest=399)) == 399


def test_probe(corpus):
    path = corpus.add("a.wav", wave=np.stack([tone(500), tone(500)], 1), rate=44100, subtype="PCM_24")
    info = probe(Entry(str(path), 0))
    assert (info.sample_rate, info.channels, info.frames, info.subtype) == (44100, 2, 500, "PCM_24")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AudioError, match="truncated"):
        probe(Entry(str(path), 0))
