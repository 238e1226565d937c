"""The forms in which people have audio, as sources for `audio.reading`: paths, URLs, bytes, files, arrays, dicts."""

import io
import tempfile
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from torch import Tensor

from audiolm_lite.audio.download import MAX_BYTES, NamedFile, is_url, open_url
from audiolm_lite.audio.errors import AudioError, AudioSource
from audiolm_lite.audio.reading import SAMPLE_RATE
from audiolm_lite.audio.samples import SampleArray

FORMS = (
    "a path (str or Path), a URL (http, https, file), bytes of a file, an open binary file, a NumPy array or tensor "
    "(at 16 kHz, or with its rate as (samples, rate) or sampling_rate=), or a dict of datasets "
    '({"array", "sampling_rate"} or {"bytes", "path"})'
)
_Bytes: TypeAlias = bytes | bytearray | memoryview
_RATES = range(1000, 768001)
_MOST_CHANNELS = 8  # more are a batch of clips, whose mean nobody wants
_IN_MEMORY = 1 << 24  # bytes of a stream that are kept in memory before a temporary file is used


class InputError(AudioError, TypeError):
    """A value in a form that is not audio; the message says which forms are."""


def is_one_clip(audio: Any) -> bool:
    """Whether a value is one clip, not a list of clips; a tuple is one clip only as (samples, rate).

    Examples
    --------
    >>> array = np.zeros(800, np.float32)
    >>> [is_one_clip(value) for value in ("a.wav", array, (array, 8000), ("a.wav", "b.wav"), ["a.wav"])]
    [True, True, True, False, False]
    """
    if isinstance(audio, tuple):
        return _with_rate(audio) is not None
    if isinstance(audio, _Bytes | str | Path | np.ndarray | Tensor | Mapping | SampleArray):
        return True
    return _has(audio, "read") or _is_decoder(audio) or _is_decoded(audio)


def as_source(audio: Any, sampling_rate: int | None = None) -> AudioSource:
    """Return audio in any form as a source that `audio.reading` reads.

    Parameters
    ----------
    audio : object
        One of these:

        - str or Path: a file. A str that begins with http://, https:// or file:// is a URL; it is downloaded, within
          the limits of `audio.download`.
        - bytes, bytearray, memoryview: the content of a file, such as a FLAC.
        - an open binary file; one that cannot seek, such as a pipe or the answer of a server, is read to its end.
        - ndarray or Tensor of samples: [S], or [S, channels] or [channels, S], where the shorter side is the channels.
          Floats have full scale 1; int8, int16, int32 and uint8 are divided by theirs. Its rate is `sampling_rate`,
          or 16 kHz.
        - (samples, rate) or (rate, samples), as soundfile, librosa, torchaudio and gradio have them.
        - a dict of the library datasets: {"array", "sampling_rate"} or {"bytes", "path"}; {"raw", "sampling_rate"} of
          transformers.
        - an audio decoder of torchcodec, which datasets returns, or its samples (`data`, `sample_rate`).
        - a SampleArray.
    sampling_rate : int, optional
        Rate of arrays that have none of their own, in Hz.

    Raises
    ------
    InputError
        Another form, or an array of another type or shape.
    AudioError
        A URL cannot be downloaded.

    Examples
    --------
    >>> as_source("a.wav"), as_source("file:///data/a.wav").as_posix()
    ('a.wav', '/data/a.wav')
    >>> stereo = as_source((np.zeros((2, 44100), np.int16), 44100))
    >>> stereo.samplerate, stereo.frames, stereo.channels
    (44100, 44100, 2)
    >>> as_source({"array": np.zeros(800), "sampling_rate": 8000}).samplerate
    8000
    >>> as_source(3.5)
    Traceback (most recent call last):
        ...
    audiolm_lite.audio.inputs.InputError: audio: float is no form of audio; give a path (str or Path), a URL ...
    """
    if isinstance(audio, str):
        return open_url(audio) if is_url(audio) else audio
    if isinstance(audio, Path | SampleArray):
        return audio
    if isinstance(audio, _Bytes):
        return _named(io.BytesIO(audio), "bytes")
    if isinstance(audio, tuple) and (pair := _with_rate(audio)) is not None:
        return _samples(pair[0], pair[1])
    if isinstance(audio, np.ndarray | Tensor):
        return _samples(audio, SAMPLE_RATE if sampling_rate is None else sampling_rate)
    if isinstance(audio, Mapping):
        return _of_dict(audio, sampling_rate)
    if _is_decoder(audio):
        audio = audio.get_all_samples()
    if _is_decoded(audio):
        return _samples(audio.data, audio.sample_rate, channels_first=True)
    if _has(audio, "read"):
        return _of_file(audio)
    hint = ""
    if isinstance(audio, list) and audio and all(isinstance(value, Real) for value in audio[:9]):
        hint = " of numbers, which is ambiguous (use numpy.array(...) for samples)"
    elif _has(getattr(audio, "file", None), "read"):
        hint = " with an open file (give its attribute file)"
    raise InputError("audio", f"{type(audio).__name__}{hint} is no form of audio; give {FORMS}")


def _with_rate(pair: tuple[Any, ...]) -> tuple[Any, int] | None:
    """Samples and rate of a tuple of the two in either order; None for other tuples."""
    for samples, rate in (pair, pair[::-1]) if len(pair) == 2 else ():
        number = isinstance(rate, Real) and not isinstance(rate, bool)
        if number and isinstance(samples, np.ndarray | Tensor):
            return samples, _rate(rate)
    return None


def _rate(rate: Any) -> int:
    whole = isinstance(rate, Real) and not isinstance(rate, bool) and float(rate).is_integer()
    if not whole or int(rate) not in _RATES:
        raise InputError("audio", f"sampling rate {rate!r}; give Hz as a whole number from 1000 to 768000")
    return int(rate)


def _samples(samples: Any, rate: Any, channels_first: bool | None = None) -> SampleArray:
    """Samples in memory from an array [S], [S, channels] or [channels, S]; None: the shorter side is the channels."""
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    samples = np.asarray(samples)
    shape = list(samples.shape)
    if samples.ndim not in (1, 2) or not samples.size:
        raise InputError(
            "waveform",
            f"an array of shape {shape}; give samples [S] of one clip, [S, channels] or [channels, S]; several clips "
            "are a list of arrays",
        )
    if samples.ndim == 2:
        if channels_first is None and shape[0] == shape[1] and shape[0] > 1:
            raise InputError("waveform", f"an array of shape {shape}: which side is the channels? give samples [S]")
        if channels_first or (channels_first is None and shape[0] < shape[1]):
            samples = samples.T
        if samples.shape[1] > _MOST_CHANNELS:
            reason = f"an array of shape {shape} has {samples.shape[1]} channels; several clips are a list of arrays"
            raise InputError("waveform", reason)
    try:
        return SampleArray(samples, _rate(rate))
    except ValueError as error:
        if isinstance(error, AudioError):
            raise
        raise InputError("waveform", str(error).removeprefix("waveform: ")) from error


def _of_dict(audio: Mapping[str, Any], sampling_rate: int | None) -> AudioSource:
    array = next((audio[name] for name in ("array", "raw") if audio.get(name) is not None), None)
    if array is not None:
        rate = audio.get("sampling_rate") or sampling_rate
        if rate is None:
            raise InputError("audio", 'a dict with an array needs its rate; add "sampling_rate"')
        return _samples(np.asarray(array) if isinstance(array, list) else array, rate)
    content, path = audio.get("bytes"), audio.get("path")
    if content is not None:
        return _named(io.BytesIO(content), str(path or "bytes"))
    if isinstance(path, str | Path) and str(path):
        return as_source(path)
    if "audio" in audio:
        raise InputError("audio", 'a row of a dataset with the field "audio"; give that field: row["audio"]')
    names = ", ".join(map(str, list(audio)[:9])) or "none"
    raise InputError("audio", f"a dict with the fields {names} is no form of audio; give {FORMS}")


def _of_file(file: Any) -> BinaryIO:
    name = getattr(file, "name", None)
    name = name if isinstance(name, str) and name else type(file).__name__
    if isinstance(file, io.TextIOBase):
        raise InputError(name, 'is open as text; open it in binary mode: open(path, "rb")')
    if getattr(file, "closed", False):
        raise InputError(name, "is a closed file; open it again")
    if _seeks(file):
        file.seek(0)
        return _named(file, name)
    content, size = tempfile.SpooledTemporaryFile(_IN_MEMORY), 0  # noqa: SIM115  closed when it is not used any more
    while block := file.read(1 << 16):
        if not isinstance(block, bytes | bytearray):
            raise InputError(name, f"its read() returns {type(block).__name__}, not bytes; {_binary(block)}")
        size += content.write(block)
        if size > MAX_BYTES:
            raise AudioError(name, f"a stream of more than {MAX_BYTES / 2**20:g} MiB; write it to a file")
    content.seek(0)
    return _named(content, name)


def _binary(block: Any) -> str:
    asynchronous = hasattr(block, "__await__")
    return "read it with await and give the bytes" if asynchronous else 'open it in binary mode: open(path, "rb")'


def _seeks(file: Any) -> bool:
    try:
        return bool(_has(file, "seek") and _has(file, "tell") and file.seekable())
    except (AttributeError, OSError):
        return False


def _named(file: Any, name: str) -> BinaryIO:
    """An open file with the attribute `name` that messages and readers need."""
    return file if getattr(file, "name", None) == name else NamedFile(file, name)  # type: ignore[return-value]


def _has(value: Any, method: str) -> bool:
    return callable(getattr(value, method, None))


def _is_decoder(value: Any) -> bool:
    """An AudioDecoder of torchcodec, which datasets returns for each row."""
    return _has(value, "get_all_samples")


def _is_decoded(value: Any) -> bool:
    """Samples of torchcodec: data [channels, S] and sample_rate."""
    data, rate = getattr(value, "data", None), getattr(value, "sample_rate", None)
    return isinstance(data, Tensor) and isinstance(rate, Integral)
