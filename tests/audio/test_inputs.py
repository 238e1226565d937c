"""The forms in which people have audio: each gives the samples of the file, or a message that says which forms are."""

import http.server
import io
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from audiolm_lite.audio import download
from audiolm_lite.audio.asked import AskedAudio
from audiolm_lite.audio.download import open_url
from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.inputs import InputError, as_source, is_one_clip
from audiolm_lite.audio.reading import audio_duration, read_audio

RATE = 22050
STEREO = (20000 * np.stack([np.sin(np.arange(RATE) / 20), np.sin(np.arange(RATE) / 21)], axis=1)).astype(np.int16)


@pytest.fixture(scope="module")
def content():
    file = io.BytesIO()
    soundfile.write(file, STEREO, RATE, format="WAV")
    return file.getvalue()


@pytest.fixture
def path(tmp_path, content):
    (tmp_path / "a b.wav").write_bytes(content)
    return tmp_path / "a b.wav"


class Pipe(io.RawIOBase):
    """A binary stream that cannot seek."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self._data.readinto(buffer)


def forms(path, content):
    """Name -> the same audio in another form."""
    floats, spooled = STEREO / 32768, io.BytesIO(content)
    spooled.read(100)  # somebody has looked at its beginning
    return {
        "str": str(path),
        "file URL": path.as_uri(),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "BytesIO": spooled,
        "open file": path.open("rb"),
        "pipe": Pipe(content),
        "buffered pipe": io.BufferedReader(Pipe(content)),
        "int16, rate": (STEREO, RATE),
        "rate, int16": (RATE, STEREO),
        "channels first": (STEREO.T, np.int64(RATE)),
        "tensor": (torch.from_numpy(STEREO.T.copy()), RATE),
        "int32": (STEREO.astype(np.int32) << 16, float(RATE)),
        "float64": (floats, RATE),
        "float32 tensor": (torch.from_numpy(floats).float().requires_grad_(), RATE),
        "array dict": {"path": None, "array": floats.T, "sampling_rate": RATE},
        "raw dict": {"raw": floats, "sampling_rate": RATE},
        "bytes dict": {"bytes": content, "path": "gone.wav"},
        "path dict": {"bytes": None, "path": str(path)},
        "decoder": SimpleNamespace(
            get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(floats.T.copy()).float(), sample_rate=RATE)
        ),
        "decoded": SimpleNamespace(data=torch.from_numpy(floats.T.copy()).float(), sample_rate=RATE),
    }


def test_every_form_has_the_samples_of_the_file(path, content):
    expected, left = read_audio(path), read_audio(path, channel=0)
    assert len(expected) == 16000 and not torch.allclose(expected, left, atol=0.01)
    for name, audio in forms(path, content).items():
        source = as_source(audio)
        assert is_one_clip(audio), name
        for _ in range(2):  # read again, as its length is read before its samples
            torch.testing.assert_close(read_audio(source), expected, atol=1e-4, rtol=0, msg=name)
        torch.testing.assert_close(read_audio(source, channel=0), left, atol=1e-4, rtol=0, msg=name)
        assert audio_duration(source) == 1.0, name


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.int32, np.float16, np.float32, np.float64])
def test_full_scale_of_every_type(kind):
    wave = 0.5 * np.sin(np.arange(16000) / 9)
    info = np.iinfo(kind) if np.issubdtype(kind, np.integer) else None
    scaled = wave if info is None else np.round(wave * 2.0 ** (info.bits - 1)) + (128 if kind == np.uint8 else 0)
    for samples in (scaled.astype(kind), torch.from_numpy(scaled.astype(kind))):
        np.testing.assert_allclose(
            read_audio(as_source(samples)), wave, atol=0.006 if info and info.bits == 8 else 1e-3
        )
    assert read_audio(as_source(samples, sampling_rate=8000)).shape == (32000,)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (None, "NoneType is no form of audio; give a path"),
        (3.5, "float is no form of audio"),
        ([0.1, 0.2], "list of numbers, which is ambiguous"),
        (np.zeros((2, 3, 4)), r"array of shape \[2, 3, 4\]; give samples \[S\] of one clip"),
        (np.zeros((32, 16000)), "has 32 channels; several clips are a list of arrays"),
        (np.zeros((2, 2)), "which side is the channels"),
        (np.zeros(0), r"array of shape \[0\]"),
        (np.arange(9), "samples of type int64 have no known full scale; give floats from -1 to 1, or int16"),
        (np.zeros(9, bool), "samples of type bool"),
        (np.zeros(9, complex), "samples of type complex128"),
        ((np.zeros(9), 0), "sampling rate 0; give Hz"),
        ((np.zeros(9), 44.1), "sampling rate 44.1; give Hz"),
        ({"array": np.zeros(9)}, "needs its rate"),
        ({"bytes": None, "path": None}, "a dict with the fields bytes, path is no form"),
        ({"audio": {"array": np.zeros(9), "sampling_rate": 16000}, "text": "a"}, r'give that field: row\["audio"\]'),
        (io.StringIO("a"), "is open as text"),
        (SimpleNamespace(file=io.BytesIO()), "give its attribute file"),
        ("ftp://example.org/a.wav", "scheme ftp is not supported"),
        ("file://elsewhere/a.wav", "names a file on the machine elsewhere"),
    ],
)
def test_wrong_forms_are_told_what_is_taken(audio, message):
    with pytest.raises(AudioError, match=message):
        as_source(audio)


def test_samples_that_are_not_audio_are_refused():
    for samples, message in ((np.full(9, np.nan), "NaN"), (np.full(9, 3000.0), "full scale is 1")):
        with pytest.raises(AudioError, match=message):
            read_audio(as_source(samples))
    closed = io.BytesIO(b"a")
    closed.close()
    with pytest.raises(InputError, match="is a closed file"):
        as_source(closed)


def test_the_clips_of_a_call():
    array = np.zeros((800, 2), np.float32)
    assert len(AskedAudio([array, "a.wav", ("b.wav", array)]).groups) == 3
    assert [len(group) for group in AskedAudio(("b.wav", array)).groups] == [2]
    assert AskedAudio((array, 8000)).groups[0][0].name == "a waveform"
    assert AskedAudio("https://a:b@c.org/d.wav?key=1", channel=1).groups[0][0].name == "https://c.org/d.wav, channel 1"
    for channel in (-1, "left", 1.5, True):
        with pytest.raises(InputError, match=r'channel is .*; give a number from 0, "each"'):
            AskedAudio("a.wav", channel=channel)


@pytest.fixture
def server(content):
    """A local server; the path of a request decides what it does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802  the name that http.server calls
            kind = self.path.strip("/").partition("?")[0]
            if kind == "missing":
                return self.send_error(404)
            if kind in ("moved", "local"):
                self.send_response(302)
                self.send_header("Location", "/a.wav" if kind == "moved" else "file:///etc/hostname")
                return self.end_headers()
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if kind == "page" else "audio/wav")
            if kind != "endless":
                self.send_header("Content-Length", str(len(content) * (2 if kind == "cut" else 1)))
            self.end_headers()
            try:
                for _ in range(200 if kind == "endless" else 1):
                    self.wfile.write(content)
                    time.sleep(0.01 if kind == "endless" else 0)
            except OSError:
                pass

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_urls_are_downloaded(server, path):
    for name in ("a.wav", "moved", "a.wav?token=secret"):
        assert read_audio(as_source(f"{server}/{name}")).equal(read_audio(path))
    assert read_audio(as_source({"path": f"{server}/a.wav", "bytes": None})).equal(read_audio(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing?key=secret", "missing: the server answers 404"),
        ("page", "is a web page"),
        ("cut", "the connection ended after|cannot be downloaded"),
        ("local", "file:///etc/hostname' is not allowed"),
    ],
)
def test_downloads_that_fail(server, name, message):
    with pytest.raises(AudioError, match=message) as error:
        as_source(f"{server}/{name}")
    assert "secret" not in str(error.value)


def test_downloads_have_limits(server, monkeypatch):
    with pytest.raises(AudioError, match="is larger than 0.01"):
        open_url(f"{server}/a.wav", max_bytes=1 << 14)
    with pytest.raises(AudioError, match="is larger than"):
        open_url(f"{server}/endless", max_bytes=1 << 18)
    with pytest.raises(AudioError, match=r"not downloaded within 0.3 s"):
        open_url(f"{server}/endless", max_seconds=0.3)
    monkeypatch.setattr(download, "MAX_BYTES", 0)
    with pytest.raises(AudioError, match="cannot be downloaded"):
        as_source("http://127.0.0.1:9/a.wav")
