"""Reading audio: right samples, or an error that names the file and says what to do."""

import pickle

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.audio import AudioError, audio_duration, read_audio


def sine(rate, seconds=1.0, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", sine(16000), 16000)
    samples = read_audio(tmp_path / f"a.{suffix}")
    assert samples.dtype == torch.float32 and samples.shape == (16000,)
    assert audio_duration(tmp_path / f"a.{suffix}") == 1.0
    np.testing.assert_allclose(samples[2000:-2000], sine(16000)[2000:-2000], atol=0.02)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_other_rates_are_resampled_without_aliasing(tmp_path, rate):
    high = sine(rate, frequency=9000.0) if rate > 22050 else 0.0  # above 8 kHz: must be gone at 16 kHz
    soundfile.write(tmp_path / "a.wav", sine(rate) + high, rate, subtype="FLOAT")
    samples = read_audio(tmp_path / "a.wav")
    assert samples.shape == (16000,)
    np.testing.assert_allclose(samples[500:-500], sine(16000)[500:-500], atol=2e-3)


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([sine(16000), np.zeros(16000, np.float32)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), sine(16000) / 2, atol=1e-7)


def test_segments(tmp_path):
    ramp = np.linspace(-1, 1, 16000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", ramp, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", start=0.25, duration=0.5), ramp[4000:12000])
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", start=0.75), ramp[12000:])
    assert len(read_audio(tmp_path / "a.wav", start=0.5, duration=0.505)) == 8000  # the manifest's seconds are rounded
    soundfile.write(tmp_path / "b.flac", sine(44100), 44100)
    assert len(read_audio(tmp_path / "b.flac", start=0.5, duration=0.25)) == 4000


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"start": 1.0}, "not inside the 1 s of audio"),
        ({"start": 0.5, "duration": 0.6}, "segment 0.5 s to 1.1 s is not inside"),
        ({"start": -0.1}, "start must be >= 0"),
        ({"duration": 0.0}, "duration > 0"),
        ({"duration": 1e-5}, "holds no sample"),
    ],
)
def test_impossible_segments_are_refused(tmp_path, segment, message):
    soundfile.write(tmp_path / "a.wav", sine(16000), 16000)
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path / "a.wav", **segment)


def broken_files(folder):
    """File -> part of the message that it must cause."""
    (folder / "folder.wav").mkdir()
    (folder / "zero_bytes.wav").write_bytes(b"")
    (folder / "text.flac").write_text("404 Not Found")
    (folder / "noise.raw").write_bytes(b"1234")
    soundfile.write(folder / "no_samples.wav", np.zeros(0, np.float32), 16000)
    with_nan = sine(16000)
    with_nan[8000] = np.nan
    soundfile.write(folder / "nan.wav", with_nan, 16000, subtype="FLOAT")
    soundfile.write(folder / "whole.flac", sine(16000, seconds=4), 16000)
    whole = (folder / "whole.flac").read_bytes()
    (folder / "half.flac").write_bytes(whole[: len(whole) // 2])
    return {
        "missing.wav": "no such file",
        "folder.wav": "is a directory",
        "zero_bytes.wav": "not readable as audio",
        "text.flac": "not readable as audio",
        "noise.raw": "not readable as audio",
        "no_samples.wav": "holds no audio",
        "nan.wav": "NaN or infinite sample at 0.5 s",
        "half.flac": "fetch the file again",
    }


def test_broken_files_are_refused_by_name(tmp_path):
    for name, message in broken_files(tmp_path).items():
        with pytest.raises(AudioError, match=message) as error:
            read_audio(tmp_path / name)
        assert error.value.path == str(tmp_path / name) and str(error.value).startswith(error.value.path)
        copy = pickle.loads(pickle.dumps(error.value))  # the way out of a DataLoader worker
        assert str(copy) == str(error.value)
