"""Windows of a recording of any length, cut where it is quiet, so that a word is rarely cut in two."""

from collections.abc import Iterator
from typing import NamedTuple

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


def audio_windows(path: AudioSource, longest: float) -> Iterator[Window]:
    """Divide a recording into consecutive windows, without gaps and overlap.

    A recording that is not longer than a window is one window. A longer one is cut in the second half of each window
    that it fills, where its energy is least. It is read piece by piece, so memory does not grow with its length.

    Parameters
    ----------
    path : str, Path or binary file
        As for `audio.reading.read_audio`.
    longest : float
        Largest length of a window in seconds, at least 2.

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
    for block in _blocks(path):
        rest = np.concatenate([rest, block])
        while len(rest) > size + least:
            cut = _quietest(rest, size // 2, size)
            yield Window(position / SAMPLE_RATE, torch.from_numpy(rest[:cut].copy()))
            rest, position = rest[cut:], position + cut
    if len(rest) > size:
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


def _blocks(path: AudioSource) -> Iterator[np.ndarray]:
    """Samples of a recording at 16 kHz, block by block."""
    stream = None
    for samples, rate in audio_blocks(path):
        if rate == SAMPLE_RATE:
            yield samples
            continue
        if stream is None:
            stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        yield stream.resample_chunk(samples)
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
