"""Reading audio: every file that can be decoded becomes mono float32 samples at the rate of the encoders."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from audiolm_lite.audio.channels import OneChannel
from audiolm_lite.audio.containers import ContainerAudio
from audiolm_lite.audio.errors import AudioError, AudioSource
from audiolm_lite.audio.mp3 import FRAME_SAMPLES
from audiolm_lite.audio.opening import open_audio
from audiolm_lite.audio.samples import SampleArray

SAMPLE_RATE = 16000
# Part of every feature store's fingerprint: change it whenever `read_audio` returns other samples for the same file.
AUDIO_RULES = f"mono by mean, {SAMPLE_RATE} Hz by soxr HQ, float32"
# Manifests round seconds, so a segment may end up to this many seconds after the audio.
TOLERANCE = 0.01
# Full scale is 1. Much larger floats are integers that were not divided, which no model was trained on.
_LOUDEST = 64.0
_BLOCK_SECONDS = 10.0
OpenAudio: TypeAlias = soundfile.SoundFile | ContainerAudio | SampleArray


def read_audio(
    path: AudioSource,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    *,
    channel: int | None = None,
) -> Tensor:
    """Read a file or a segment of it; memory holds no more than the segment.

    Parameters
    ----------
    path : str, Path, binary file or SampleArray
        WAV, FLAC, OGG, MP3 and all other formats of libsndfile; m4a, AAC, WebM and further ones by the package av (a
        segment is decoded from the beginning of the file, so convert files that are read often). A .pcm file without a
        header is read as mono, 16 kHz, 16 bit, little endian. An open file needs an attribute `name` for messages.
        `audio.inputs` makes a source of other forms.
    start : float
        Begin of the segment in seconds.
    duration : float, optional
        Length of the segment in seconds; None: to the end of the file.
    sample_rate : int
        Rate of the result in Hz; other rates are converted with soxr (HQ).
    channel : int, optional
        The channel to read, counted from 0; None: the mean of all.

    Returns
    -------
    Tensor
        Samples [S], float32. Silence and clipped samples are no errors.

    Raises
    ------
    AudioError
        The file is missing, empty, truncated or cannot be decoded; the segment is not inside it; it has no such
        channel; samples are NaN, infinite or far above full scale.

    Warns
    -----
    ChannelWarning
        The channels cancel or differ, so that their mean loses or mixes sounds.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(file, np.zeros((44100, 2)), 44100)
    >>> read_audio(file, start=0.25, duration=0.5).shape
    torch.Size([8000])
    """
    blocks, rates = zip(*audio_blocks(path, start, duration, channel=channel))
    samples = np.concatenate(blocks)
    if rates[0] != sample_rate:
        samples = soxr.resample(samples, rates[0], sample_rate, quality="HQ")
    if len(samples) == 0:
        raise AudioError(path, f"the segment contains no sample at {sample_rate} Hz; make it longer")
    return torch.from_numpy(samples)


def audio_blocks(
    path: AudioSource, start: float = 0.0, duration: float | None = None, *, channel: int | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (samples [n], rate in Hz) of a file or a segment, ten seconds at a time, at the file's own rate.

    Parameters, errors and warnings are those of `read_audio`; samples are float32.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "silence.wav"
    >>> soundfile.write(file, np.zeros(12 * 8000), 8000)
    >>> [(samples.shape, rate) for samples, rate in audio_blocks(file)]
    [((80000,), 8000), ((16000,), 8000)]
    """
    with open_audio(path) as file:
        rate, mix = file.samplerate, OneChannel(path, file.channels, channel)
        if isinstance(file, ContainerAudio) and start == 0 and duration is None:
            first, last = 0, None  # the length would be counted by decoding all samples
        else:
            first, last = _segment(path, file, start, duration)
            _move_to(path, file, first)
        position = first
        while last is None or position < last:
            count = round(_BLOCK_SECONDS * rate) if last is None else min(last - position, round(_BLOCK_SECONDS * rate))
            samples = _decode(path, file, count)
            end = position + len(samples)
            if len(samples) < count:
                _check_end(path, file, first, end, last)
                last = end
            if len(samples):
                _check_samples(path, samples, position, rate)
                yield mix(samples), rate
            position = end
        mix.warn()


def audio_duration(path: AudioSource, start: float = 0.0, duration: float | None = None) -> float:
    """Return the seconds of a file or of a segment of it, from its header; raises AudioError as `read_audio` does.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "silence.wav"
    >>> soundfile.write(file, np.zeros(12000), 8000)
    >>> audio_duration(file), audio_duration(file, start=1.0)
    (1.5, 0.5)
    """
    with open_audio(path) as file:
        first, last = _segment(path, file, start, duration)
        return (last - first) / file.samplerate


def audio_header(path: AudioSource) -> tuple[int, int, int]:
    """Return the rate in Hz, the samples and the channels of a file; raises AudioError as `read_audio` does.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "silence.wav"
    >>> soundfile.write(file, np.zeros((12000, 2)), 8000)
    >>> audio_header(file)
    (8000, 12000, 2)
    """
    with open_audio(path) as file:
        return file.samplerate, file.frames, file.channels


def _check_end(path: AudioSource, file: OpenAudio, first: int, end: int, last: int | None) -> None:
    """Raise AudioError if samples from `first` end at `end`, but should at `last` or, if None, are none."""
    if last is None:
        if end == first:
            raise AudioError(path, "contains no audio; delete it or create it again")
        return
    # Without a length tag, an MP3's length is exact to two frames only.
    inexact = file.format == "MP3" and last == file.frames and last - end <= 2 * FRAME_SAMPLES
    if not inexact or end == first:
        decoded = f"{end - first} of {last - first} samples"
        raise AudioError(path, f"truncated: only {decoded} could be decoded; download the file again")


def _segment(path: AudioSource, file: OpenAudio, start: float, duration: float | None) -> tuple[int, int]:
    """Return the first sample of a segment and the sample after its last."""
    if start < 0 or (duration is not None and duration <= 0):
        raise AudioError(path, f"segment {start} s + {duration} s: start must be >= 0 and duration > 0")
    rate, length = file.samplerate, file.frames / file.samplerate
    end = length if duration is None else start + duration
    if start >= length or end > length + TOLERANCE:
        reason = f"segment {start:g} s to {end:g} s is not inside the {length:g} s of audio; correct start/duration"
        raise AudioError(path, reason)
    first, last = round(start * rate), min(round(end * rate), file.frames)
    if first >= last:
        raise AudioError(path, f"segment {start:g} s to {end:g} s contains no sample; make it longer")
    return first, last


def _move_to(path: AudioSource, file: OpenAudio, first: int) -> None:
    """Move to a sample."""
    if not isinstance(file, ContainerAudio) and file.seekable():
        if first:
            try:
                file.seek(first)
            except soundfile.LibsndfileError as error:
                raise AudioError(path, f"decoding failed ({error}); download the file again") from error
        return
    position = 0  # MP3: seeking is inaccurate by seconds where bitrates vary, so all samples before are decoded
    while position < first:
        count = len(_decode(path, file, min(first - position, round(_BLOCK_SECONDS * file.samplerate))))
        if count == 0:
            reason = f"truncated: no more than {position} samples could be decoded; download the file again"
            raise AudioError(path, reason)
        position += count


def _decode(path: AudioSource, file: OpenAudio, count: int) -> np.ndarray:
    """Decode up to `count` samples [n, channels]."""
    try:
        return file.read(count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"decoding failed ({error}); download the file again") from error


def _check_samples(path: AudioSource, samples: np.ndarray, position: int, rate: int) -> None:
    """Raise AudioError for samples [n, channels], from sample `position` of the file on, that are not audio."""
    peak = np.abs(samples).max(axis=1)
    if not np.isfinite(peak).all():
        seconds = (position + int((~np.isfinite(peak)).argmax())) / rate
        raise AudioError(path, f"NaN or infinite sample at {seconds:g} s; create the file again")
    if peak.max() > _LOUDEST:
        reason = f"samples of up to {peak.max():.0f}, but full scale is 1; divide them by their full scale"
        raise AudioError(path, reason)
