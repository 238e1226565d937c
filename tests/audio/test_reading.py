"""Reading audio: the correct samples, or an error that names the file and says what to do."""

import csv
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import unicodedata

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.audio import opening
from audiolm_lite.audio.mp3 import count_samples
from audiolm_lite.audio.reading import AudioError, audio_duration, audio_header, read_audio

# The first bytes of formats by which other files are recognised.
MARKS = (b"fLaC", b"OggS", b"ID3\4", b"RIFF\0\0\0\0AVI ", b"\0\0\0\x20ftyp", b"\x1aE\xdf\xa3", b"#!AMR\n", b"wvpk")


def sine(rate, seconds=1.0, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", sine(16000), 16000)
    samples = read_audio(tmp_path / f"a.{suffix}")
    assert samples.dtype == torch.float32 and samples.shape == (16000,)
    assert audio_duration(tmp_path / f"a.{suffix}") == 1.0
    np.testing.assert_allclose(samples[2000:-2000], sine(16000)[2000:-2000], atol=0.02)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
def test_other_rates_are_resampled_without_aliasing(tmp_path, rate):
    high = sine(rate, frequency=9000.0) if rate > 22050 else 0.0  # above 8 kHz: must be removed at 16 kHz
    soundfile.write(tmp_path / "a.wav", sine(rate) + high, rate, subtype="FLOAT")
    samples = read_audio(tmp_path / "a.wav")
    assert samples.shape == (16000,)
    np.testing.assert_allclose(samples[500:-500], sine(16000)[500:-500], atol=2e-3)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "DOUBLE", "ULAW"])
def test_sample_formats(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", sine(16000), 16000, subtype=subtype)
    atol = {"PCM_U8": 1 / 128, "ULAW": 0.02}.get(subtype, 1e-6)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), sine(16000), atol=atol)


def test_eight_channels(tmp_path):
    channels = np.stack([(channel + 1) * sine(16000) / 8 for channel in range(8)], axis=1)
    soundfile.write(tmp_path / "a.wav", channels, 16000, subtype="FLOAT")
    assert audio_header(tmp_path / "a.wav") == (16000, 16000, 8)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), sine(16000) * 4.5 / 8, atol=1e-6)


def test_headerless_pcm(tmp_path):
    samples = (sine(16000) * 32767).astype("<i2")
    (tmp_path / "a.PCM").write_bytes(samples.tobytes())
    np.testing.assert_allclose(read_audio(tmp_path / "a.PCM", 0.5), samples[8000:] / 32768, atol=1e-7)
    (tmp_path / "a.bin").write_bytes(samples.tobytes())
    with pytest.raises(AudioError, match="not readable as audio"):
        read_audio(tmp_path / "a.bin")
    (tmp_path / "odd.pcm").write_bytes(samples.tobytes()[:-1])  # as some of KsponSpeech's evaluation files
    np.testing.assert_allclose(read_audio(tmp_path / "odd.pcm"), samples[:-1] / 32768, atol=1e-7)
    (tmp_path / "one.pcm").write_bytes(b"\x00")
    with pytest.raises(AudioError, match="contains no audio"):
        read_audio(tmp_path / "one.pcm")
    soundfile.write(tmp_path / "wav.wav", sine(8000), 8000)
    (tmp_path / "wav.wav").rename(tmp_path / "wav.pcm")
    assert audio_header(tmp_path / "wav.pcm") == (8000, 8000, 1)


@pytest.mark.parametrize("head", [b"\xff\xf1", b"\xff\xf9", b"\x0b\x77", *MARKS])
def test_headerless_samples_may_begin_like_any_other_format(tmp_path, head):
    """Its ending says what a .pcm file is; the samples -3585 and -1537 are marks of AAC, 30475 is that of AC-3."""
    data = head + (sine(16000) * 32767).astype("<i2").tobytes()
    expected = np.frombuffer(data, "<i2") / 32768
    (tmp_path / "a.pcm").write_bytes(data)
    np.testing.assert_allclose(read_audio(tmp_path / "a.pcm"), expected, atol=1e-7)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "a.pcm", "a.pcm")
    np.testing.assert_allclose(read_audio(tmp_path / "shard.tar/a.pcm"), expected, atol=1e-7)


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


def noisy_then_quiet(rate):
    """30 s that a codec of variable bitrate encodes at different bitrates."""
    samples = np.concatenate([sine(rate, 10), np.random.default_rng(0).normal(0, 0.2, 10 * rate), sine(rate, 10)])
    return samples.clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
def test_mp3_segments_begin_at_the_requested_time(tmp_path, mode):
    """Seeking in an MP3 of variable bitrate is inaccurate by seconds."""
    file = tmp_path / "a.mp3"
    soundfile.write(file, noisy_then_quiet(16000), 16000, bitrate_mode=mode, compression_level=0.5)
    complete = read_audio(file)
    for start in (0.5, 9.9, 20.0, 25.3):
        np.testing.assert_allclose(read_audio(file, start, 1.5), complete[round(16000 * start) :][:24000], atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff"])
def test_blocks_add_up_to_the_file(tmp_path, monkeypatch, suffix):
    """Blocks of any size give the samples of one read."""
    file = tmp_path / f"a.{suffix}"
    settings = {"bitrate_mode": "VARIABLE", "compression_level": 0.5} if suffix == "mp3" else {}
    settings |= {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    soundfile.write(file, noisy_then_quiet(16000)[144000:176000], 16000, **settings)
    complete = read_audio(file)
    monkeypatch.setattr("audiolm_lite.audio.reading._BLOCK_SECONDS", 0.0371)
    np.testing.assert_allclose(read_audio(file), complete, atol=1e-6)
    np.testing.assert_allclose(read_audio(file, 0.9, 1.0), complete[14400:30400], atol=1e-6)


def untagged(file):
    """Drop the first frame of an MP3, which contains its length and no sound."""
    data = file.read_bytes()
    file.write_bytes(data[data.index(data[:2], 100) :])


def test_mp3_without_its_length(tmp_path):
    samples, rate = noisy_then_quiet(44100), 44100
    for mode in ("CONSTANT", "VARIABLE"):
        soundfile.write(tmp_path / f"{mode}.mp3", samples, rate, bitrate_mode=mode, compression_level=0.5)
        untagged(tmp_path / f"{mode}.mp3")
    assert len(read_audio(tmp_path / "CONSTANT.mp3")) == pytest.approx(30 * 16000, abs=2 * 1152)
    complete = read_audio(tmp_path / "VARIABLE.mp3")
    assert len(complete) == pytest.approx(30 * 16000, abs=2 * 1152) and audio_header(tmp_path / "VARIABLE.mp3")[2] == 1
    segment = read_audio(tmp_path / "VARIABLE.mp3", 20.5, 1.0)
    np.testing.assert_allclose(segment[99:-99], complete[328000:344000][99:-99], atol=1e-3)


def test_the_samples_of_an_mp3_are_counted_once(tmp_path, monkeypatch):
    """Until the file changes: segments of an hour are read hundreds of times."""
    file, counted = tmp_path / "a.mp3", []
    monkeypatch.setattr(opening, "count_samples", lambda stream, run=count_samples: counted.append(1) or run(stream))
    soundfile.write(file, sine(16000, 4), 16000)
    untagged(file)
    for start in (0.0, 1.0, 2.0):
        read_audio(file, start, 0.5)
    assert audio_duration(file) == pytest.approx(4, abs=0.2) and len(counted) == 1
    soundfile.write(file, sine(16000, 7), 16000)
    untagged(file)
    assert audio_duration(file) == pytest.approx(7, abs=0.2) and len(counted) == 2


@pytest.mark.parametrize("kind", ["wav", "aiff", "au", "w64", "sph"])
def test_header_longer_than_the_data_is_an_error_naming_both(tmp_path, kind):
    file = tmp_path / f"a.{kind}"
    soundfile.write(file, sine(16000), 16000, format="NIST" if kind == "sph" else None, subtype="PCM_16")
    data = file.read_bytes()
    file.write_bytes(data[:-2000])
    with pytest.raises(AudioError, match=r"truncated: it has \d+ of the \d+ (bytes|samples) that its header announces"):
        audio_duration(file)
    file.write_bytes(data)
    assert audio_duration(file) == 1.0


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF - 36])
def test_sizes_of_an_unknown_length_are_accepted(tmp_path, size):
    """Programs that write WAV to a pipe use such sizes."""
    samples = (sine(16000) * 32767).astype("<i2").tobytes()
    format = struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    header = b"RIFF" + struct.pack("<I", size) + b"WAVEfmt " + format + b"data" + struct.pack("<I", size)
    (tmp_path / "a.wav").write_bytes(header + samples)
    assert audio_duration(tmp_path / "a.wav") == 1.0 and len(read_audio(tmp_path / "a.wav")) == 16000


def test_integers_stored_as_floats_are_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(16000) * 32768, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="samples of up to 16384, but full scale is 1"):
        read_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", sine(16000) * 3, 16000, subtype="FLOAT")  # loud, not wrong
    assert read_audio(tmp_path / "a.wav").max() > 1.4


def test_a_segment_of_two_hours_takes_little_memory(tmp_path):
    tone = (sine(16000, 5) * 32767).astype("<i2").tobytes()
    size = 2 * 3600 * 16000 * 2
    with (tmp_path / "a.wav").open("wb") as file:  # sparse before the tone
        format = struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
        file.write(b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + format + b"data" + struct.pack("<I", size))
        file.seek(44 + 7000 * 32000)
        file.write(tone)
        file.truncate(44 + size)
    tracemalloc.start()
    samples = read_audio(tmp_path / "a.wav", start=7000.0, duration=5.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(samples, sine(16000, 5), atol=1e-4)
    assert audio_duration(tmp_path / "a.wav") == 7200.0 and peak < 5e6


def test_names(tmp_path):
    names = ["a b.wav", "-i.wav", "file:x.wav", "new\nline.wav", "한국어 é.wav", "%s $(true) '.wav"]
    for name in names:
        soundfile.write(tmp_path / name, sine(16000), 16000)
        assert len(read_audio(tmp_path / name)) == 16000
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        name = unicodedata.normalize(form, "é한.wav")
        soundfile.write(tmp_path / name, sine(16000), 16000)
        assert len(read_audio(tmp_path / name)) == 16000
        with pytest.raises(AudioError, match=f"written in Unicode form {form}"):
            read_audio(tmp_path / unicodedata.normalize(other, "é한.wav"))
        (tmp_path / name).unlink()


def test_paths_without_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "file.wav").write_bytes(b"x")
    for name, message in {
        "pipe.wav": "is a pipe",
        "link.wav": f"broken link: no such file {tmp_path}/gone.wav",
        "loop.wav": "symbolic links",
        "file.wav/a.wav": "Not a directory",
        "nu\0ll.wav": "null",
        "x" * 300: "name too long",
    }.items():
        with pytest.raises(AudioError, match=message):
            read_audio(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_no_permission(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(16000), 16000)
    (tmp_path / "a.wav").chmod(0)
    with pytest.raises(AudioError, match=r"cannot be opened \(Permission denied\); check its permissions"):
        read_audio(tmp_path / "a.wav")


def test_real_files_of_many_formats(real_data):
    """Rate, channels and duration are those in the table of these files."""
    with (real_data / "formats/manifest.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 48
    for row in rows:
        file = real_data / "formats" / row["file"]
        if row["format"].startswith("UNREADABLE"):  # by libsndfile
            assert read_audio(file).abs().max() > 0.01
        else:
            rate, samples, channels = audio_header(file)
            assert (rate, channels) == (int(row["sample_rate"]), int(row["channels"]))
            assert samples / rate == pytest.approx(float(row["seconds"]), abs=0.001)
            waveform = read_audio(file)
            untagged_mp3 = 2 * 1152 * 16000 / rate if file.suffix == ".mp3" else 1
            assert len(waveform) == pytest.approx(16000 * samples / rate, abs=untagged_mp3)
            assert waveform.abs().max() > 0.01
    name = "audio-mono-16-bit-44100Hz"
    truth = read_audio(real_data / f"formats/{name}.wav")
    for other in (f"{name}.flac", f"{name}.aiff", "audio-mono-24-bit-44100Hz.wav", "audio-stereo-16-bit-44100Hz.flac"):
        torch.testing.assert_close(read_audio(real_data / "formats" / other), truth, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"start": 1.0}, "not inside the 1 s of audio"),
        ({"start": 0.5, "duration": 0.6}, "segment 0.5 s to 1.1 s is not inside"),
        ({"start": -0.1}, "start must be >= 0"),
        ({"duration": 0.0}, "duration > 0"),
        ({"duration": 1e-5}, "contains no sample"),
    ],
)
def test_impossible_segments_are_errors(tmp_path, segment, message):
    soundfile.write(tmp_path / "a.wav", sine(16000), 16000)
    with pytest.raises(AudioError, match=message):
        read_audio(tmp_path / "a.wav", **segment)


def broken_files(folder):
    """File -> part of the expected message."""
    (folder / "folder.wav").mkdir()
    (folder / "zero_bytes.wav").write_bytes(b"")
    (folder / "text.flac").write_text("404 Not Found")
    (folder / "noise.raw").write_bytes(b"1234")
    soundfile.write(folder / "no_samples.wav", np.zeros(0, np.float32), 16000)
    with_nan = sine(16000)
    with_nan[8000] = np.nan
    soundfile.write(folder / "nan.wav", with_nan, 16000, subtype="FLOAT")
    soundfile.write(folder / "complete.flac", sine(16000, seconds=4), 16000)
    complete = (folder / "complete.flac").read_bytes()
    (folder / "half.flac").write_bytes(complete[: len(complete) // 2])
    return {
        "missing.wav": "no such file",
        "folder.wav": "is a directory",
        "zero_bytes.wav": "not readable as audio",
        "text.flac": "not readable as audio",
        "noise.raw": "not readable as audio",
        "no_samples.wav": "contains no audio",
        "nan.wav": "NaN or infinite sample at 0.5 s",
        "half.flac": "download the file again",
    }


def test_errors_name_the_broken_file(tmp_path):
    for name, message in broken_files(tmp_path).items():
        with pytest.raises(AudioError, match=message) as error:
            read_audio(tmp_path / name)
        assert error.value.path == str(tmp_path / name) and str(error.value).startswith(error.value.path)
        copy = pickle.loads(pickle.dumps(error.value))  # as an error of a DataLoader worker
        assert str(copy) == str(error.value)


@pytest.mark.parametrize("name", ["a.wav", "a.pcm"])
def test_open_files_are_read_like_paths(tmp_path, name):
    samples = np.random.default_rng(0).integers(-9999, 9999, 500).astype("<i2")
    if name == "a.pcm":
        (tmp_path / name).write_bytes(samples.tobytes())
    else:
        soundfile.write(tmp_path / name, samples, 16000)

    def opened(data):
        stream = io.BytesIO(data)
        stream.name = f"shard/{name}"
        return stream

    data = (tmp_path / name).read_bytes()
    assert torch.equal(read_audio(opened(data)), read_audio(tmp_path / name))
    with pytest.raises(AudioError, match=f"shard/{name}"):
        read_audio(opened(data[:41] if name == "a.wav" else b""))
