"""Formats that libsndfile lacks: decoded by PyAV, with the right samples, or an error that says what is wrong."""

import builtins
import io
import multiprocessing

import numpy as np
import pytest
import soundfile

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.reading import audio_blocks, audio_duration, audio_header, read_audio
from tests.audio.encoding import encode

RATE = 48000
# Ending, codec, container.
FORMATS = [
    ("m4a", "aac", "ipod"),
    ("mp4", "aac", "mp4"),
    ("mov", "aac", "mov"),
    ("aac", "aac", "adts"),
    ("webm", "libopus", "webm"),
    ("opus", "libopus", "ogg"),
    ("mka", "aac", "matroska"),
    ("flv", "aac", "flv"),
    ("ac3", "ac3", "ac3"),
    ("m4a", "alac", "ipod"),
    ("avi", "ac3", "avi"),
]


def chirp(seconds=3.0):
    """A tone whose pitch rises, so that a shift in time is seen."""
    time = np.arange(int(seconds * RATE)) / RATE
    return 0.3 * np.sin(2 * np.pi * (200 + 150 * time) * time)


@pytest.mark.parametrize(("ending", "codec", "container"), FORMATS)
def test_samples_are_those_that_were_encoded(tmp_path, monkeypatch, ending, codec, container):
    """No program ffmpeg is needed, and an ending is not what decides."""
    monkeypatch.setenv("PATH", "")
    for name in (f"a.{ending}", "b.audio"):
        encode(tmp_path / name, codec, container, chirp(), RATE)
        samples = read_audio(tmp_path / name).numpy()
        assert audio_duration(tmp_path / name) == pytest.approx(len(samples) / 16000, abs=1e-4)
        assert len(samples) / 16000 == pytest.approx(3, abs=0.06)
        truth = chirp()[::3]
        # Encoders add up to 60 ms of delay; at the best shift, the samples are the same.
        window = truth[8000:24000]
        correlations = [np.corrcoef(window, samples[8000 + shift :][:16000])[0, 1] for shift in range(-80, 1000)]
        assert max(correlations) > 0.99
    assert audio_header(tmp_path / name)[::2] == (RATE, 1)


@pytest.mark.parametrize(("ending", "codec", "container"), FORMATS[:5])
def test_segments_channels_and_open_files(tmp_path, ending, codec, container):
    file = tmp_path / f"a.{ending}"
    encode(file, codec, container, np.stack([chirp(), 0 * chirp()], axis=1), RATE)
    left = read_audio(file, channel=0)
    np.testing.assert_allclose(read_audio(file, 0.5, 1.25, channel=0)[99:-99], left[8000:28000][99:-99], atol=1e-3)
    assert read_audio(file, channel=1).abs().max() < 0.01 < left.abs().max()
    stream = io.BytesIO(file.read_bytes())
    stream.name = "upload"
    for _ in range(2):  # it stays open
        assert read_audio(stream, channel=0).equal(left)
    assert sum(len(block) for block, _ in audio_blocks(stream, channel=0)) == audio_header(file)[1]
    with pytest.raises(AudioError, match="is not inside the"):
        read_audio(file, 3.5)


@pytest.mark.parametrize(("ending", "codec", "container"), [("m4a", "aac", "ipod"), ("webm", "libopus", "webm")])
def test_truncated_and_damaged_files_are_errors(tmp_path, ending, codec, container):
    file = tmp_path / f"a.{ending}"
    encode(file, codec, container, chirp(9.0), RATE)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=r"truncated|cannot be decoded"):
        read_audio(file)
    file.write_bytes(data[:40] + bytes(200))
    with pytest.raises(AudioError, match=r"cannot be decoded|without an audio stream"):
        read_audio(file)


def test_a_file_is_not_what_its_content_refers_to(tmp_path):
    """A playlist under the name of an audio file opens no other file."""
    soundfile.write(tmp_path / "secret.wav", chirp(), RATE)
    (tmp_path / "a.m4a").write_text(f"#EXTM3U\n#EXTINF:3,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n")
    (tmp_path / "b.m4a").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n")
    for name in ("a.m4a", "b.m4a"):
        with pytest.raises(AudioError, match="not readable as audio"):
            read_audio(tmp_path / name)


def test_forked_processes_decode(tmp_path):
    """As workers of a DataLoader do, after their parent has decoded a file."""
    encode(tmp_path / "a.m4a", "aac", "ipod", chirp(), RATE)
    expected = len(read_audio(tmp_path / "a.m4a"))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        lengths = pool.map_async(_length, [tmp_path / "a.m4a"] * 8).get(timeout=120)
    assert lengths == [expected] * 8


def _length(path):
    return len(read_audio(path))


def test_without_the_package_the_message_names_it(tmp_path, monkeypatch):
    encode(tmp_path / "a.m4a", "aac", "ipod", chirp(), RATE)
    real = builtins.__import__

    def without(name, *given):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *given)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(AudioError, match=r"is MPEG-4 audio \(m4a, mp4\), which the package av decodes; run: pip insta"):
        read_audio(tmp_path / "a.m4a")
