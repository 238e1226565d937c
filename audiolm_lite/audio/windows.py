"""Windows of a recording of any length, cut where it is quiet, so that a word is rarely cut in two."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import soxr
import torch
from torch import Tensor

from audiolm_lite.audio.errors import AudioSource
from audiolm_lite.audio.reading import SAMPLE_RATE, audio_blocks

# A pause between words is at least this long, in seconds: the energy is averaged over it.
_PAUSE = 0.2
_HOP = SAMPLE_RATE // 100  # samples between the points at which a cut is possible
_SHORTEST = 1.0  # seconds: no window is shorter, unless the recording is
# Seconds of the windows of a recording that is too long for one: Whisper accepts 30, but few models are trained on
# clips of that length. A recording of up to 30 s is one window, also for encoders without a limit.
_LONGEST, _WHOLE = 25.0, 30.0


class Window(NamedTuple):
    """A part of a recording.

    Attributes
    ----------
    start : float
        Its begin in seconds.
    samples : Tensor
        [S] float32, mono at 16 kHz.
    """

    start: float
    samples: Tensor


def window_limits(encoder: Any) -> tuple[float, float]:
    """Return `longest` and `whole` of `audio_windows` for a model with this encoder.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> window_limits(SimpleNamespace(max_seconds=30.0)), window_limits(SimpleNamespace(max_seconds=10.0))
    ((25.0, 30.0), (10.0, 10.0))
    """
    accepted = getattr(encoder, "max_seconds", _WHOLE)
    return min(_LONGEST, accepted), min(_WHOLE, accepted)


def audio_windows(
    path: AudioSource, longest: float, whole: float = 0.0, *, channel: int | None = None
) -> Iterator[Window]:
    """Divide a recording into consecutive windows, without gaps and overlap.

    A recording that is not longer than a window is one window. A longer one is cut in the second half of each window
    that it fills, where its energy is least. It is read piece by piece, so memory does not grow with its length.

    Parameters
    ----------
    path : str, Path, binary file or SampleArray
        As for `audio.reading.read_audio`.
    longest : float
        Largest length of a window in seconds, at least 2.
    whole : float
        A recording of at most so many seconds is one window, although it is longer than `longest`.
    channel : int, optional
        As for `read_audio`.

    Raises
    ------
    AudioError
        As `read_audio`, when the part that cannot be read is reached.

    Examples
    --------
    >>> import soundfile
    >>> file = getfixture("tmp_path") / "call.wav"
    >>> speech = np.sin(np.arange(5 * 16000) / 10)
    >>> soundfile.write(file, np.concatenate([speech, np.zeros(8000), speech]), 16000)
    >>> [(round(window.start, 2), len(window.samples) / 16000) for window in audio_windows(file, longest=8.0)]
    [(0.0, 5.25), (5.25, 5.25)]
    """
    size, least = round(longest * SAMPLE_RATE), round(_SHORTEST * SAMPLE_RATE)
    rest, position = np.zeros(0, dtype=np.float32), 0
    for block in _blocks(path, channel):
        rest = np.concatenate([rest, block])
        while len(rest) > max(size + least, 0 if position else round(whole * SAMPLE_RATE)):
            cut = _quietest(rest, size // 2, size)
            yield Window(position / SAMPLE_RATE, torch.from_numpy(rest[:cut].copy()))
            rest, position = rest[cut:], position + cut
    if len(rest) > max(size, 0 if position else round(whole * SAMPLE_RATE)):
        cut = _quietest(rest, size // 2, min(size, len(rest) - least))
        yield Window(position / SAMPLE_RATE, torch.from_numpy(rest[:cut].copy()))
        rest, position = rest[cut:], position + cut
    yield Window(position / SAMPLE_RATE, torch.from_numpy(rest.copy()))


def _quietest(samples: np.ndarray, first: int, last: int) -> int:
    """Index between `first` and `last` [samples] around which `_PAUSE` seconds have the least energy.

    Among equal ones, as in digital silence, the middle of the longest run.
    """
    half = round(_PAUSE * SAMPLE_RATE / 2)
    cuts = np.arange(first, last + 1, _HOP)
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples[: last + half], dtype=np.float64))])
    ends = np.minimum(cuts + half, len(energy) - 1)
    means = (energy[ends] - energy[cuts - half]) / (ends - cuts + half)
    quiet = np.flatnonzero(means <= means.min() + 1e-12)
    runs = np.split(quiet, np.flatnonzero(np.diff(quiet) > 1) + 1)
    run = max(runs, key=len)
    return int(cuts[run[len(run) // 2]])


def _blocks(path: AudioSource, channel: int | None) -> Iterator[np.ndarray]:
    """Samples of a recording at 16 kHz, block by block."""
    stream = None
    for samples, rate in audio_blocks(path, channel=channel):
        if rate == SAMPLE_RATE:
            yield samples
            continue
        if stream is None:
            stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        yield stream.resample_chunk(samples)
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
