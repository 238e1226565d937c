"""Reading audio: whatever can be decoded becomes mono float32 at the model's rate, or an error saying why."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from audiolm_lite.audio.files import MP3_FRAME, AudioError, open_audio

SAMPLE_RATE = 16000
# Part of every feature store's fingerprint: change it whenever `read_audio` changes the samples that a model hears.
AUDIO_RULES = f"mono by mean, {SAMPLE_RATE} Hz by soxr HQ, float32"
# Manifests round seconds, so a segment may end this much (in seconds) after the audio.
TOLERANCE = 0.01
# Full scale is 1. Floats far above are integers that were never divided, which a model hears as nothing it knows.
_LOUDEST = 64.0
_BLOCK_SECONDS = 10.0


def read_audio(
    path: str | Path | BinaryIO, start: float = 0.0, duration: float | None = None, sample_rate: int = SAMPLE_RATE
) -> Tensor:
    """Read a file or a segment of it; only the segment is held in memory.

    Parameters
    ----------
    path : str, Path or binary file
        WAV, FLAC, OGG, MP3 and whatever else libsndfile decodes; other formats where the program ffmpeg is installed
        (the whole file is decoded for each call, so convert what is read often). A .pcm without a header is taken for
        mono, 16 kHz, 16 bit, little endian. Messages call an open file by its attribute `name`.
    start : float
        Where the segment begins, in seconds.
    duration : float, optional
        Length of the segment in seconds; to the end of the file if None.
    sample_rate : int
        Rate of the result in Hz; other rates are converted with soxr (HQ).

    Returns
    -------
    Tensor
        Samples [S], float32, the mean of the channels. Silence and clipped samples are audio like any other.

    Raises
    ------
    AudioError
        Missing, empty, not decodable or cut-off file; a segment that is not inside it; NaN, infinite or absurdly large
        samples.
    """
    blocks, rates = zip(*audio_blocks(path, start, duration))
    samples = np.concatenate(blocks)
    if rates[0] != sample_rate:
        samples = soxr.resample(samples, rates[0], sample_rate, quality="HQ")
    if len(samples) == 0:
        raise AudioError(path, f"the segment holds no sample at {sample_rate} Hz; make it longer")
    return torch.from_numpy(samples)


def audio_blocks(
    path: str | Path | BinaryIO, start: float = 0.0, duration: float | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (samples [n], rate in Hz) of a file or a segment, ten seconds at a time, at the file's own rate.

    Parameters and errors are those of `read_audio`; samples are float32, the mean of the channels.
    """
    with open_audio(path) as file:
        rate = file.samplerate
        first, last = _segment(path, file, start, duration)
        place = _go_to(path, file, first)
        while place < last:
            count = min(last - place, round(_BLOCK_SECONDS * rate))
            samples = _decode(path, file, count)
            place += len(samples)
            if len(samples) < count:
                missing = last - place
                # Without a tag an MP3's length is known to the frame only.
                if not (file.format == "MP3" and last == file.frames and place > first and missing <= 2 * MP3_FRAME):
                    got = place - first
                    reason = f"cut off: {got} of {last - first} samples could be decoded; fetch the file again"
                    raise AudioError(path, reason)
                last = place
            if len(samples):
                peak = np.abs(samples).max(axis=1)
                if not np.isfinite(peak).all():
                    bad = int((~np.isfinite(peak)).argmax())
                    when = (place - len(samples) + bad) / rate
                    raise AudioError(path, f"NaN or infinite sample at {when:g} s; make the file again")
                if peak.max() > _LOUDEST:
                    reason = f"samples of up to {peak.max():.0f}, but full scale is 1; divide them by their full scale"
                    raise AudioError(path, reason)
                yield samples.mean(axis=1), rate


def audio_duration(path: str | Path | BinaryIO, start: float = 0.0, duration: float | None = None) -> float:
    """Seconds of a file or of a segment of it, from its header; raises AudioError as `read_audio` does."""
    with open_audio(path) as file:
        first, last = _segment(path, file, start, duration)
        return (last - first) / file.samplerate


def audio_header(path: str | Path | BinaryIO) -> tuple[int, int, int]:
    """Rate in Hz, samples and channels of a file, from its header; raises AudioError as `read_audio` does."""
    with open_audio(path) as file:
        return file.samplerate, file.frames, file.channels


def _segment(
    path: str | Path | BinaryIO, file: soundfile.SoundFile, start: float, duration: float | None
) -> tuple[int, int]:
    """First sample of a segment, and the one after its last."""
    if start < 0 or (duration is not None and duration <= 0):
        raise AudioError(path, f"segment {start} s + {duration} s: start must be >= 0 and duration > 0")
    rate, length = file.samplerate, file.frames / file.samplerate
    end = length if duration is None else start + duration
    if start >= length or end > length + TOLERANCE:
        reason = f"segment {start:g} s to {end:g} s is not inside the {length:g} s of audio; correct start/duration"
        raise AudioError(path, reason)
    first, last = round(start * rate), min(round(end * rate), file.frames)
    if first >= last:
        raise AudioError(path, f"segment {start:g} s to {end:g} s holds no sample; make it longer")
    return first, last


def _go_to(path: str | Path | BinaryIO, file: soundfile.SoundFile, first: int) -> int:
    """Move to a sample and return it."""
    if not file.seekable():  # MP3: seeking guesses where bitrates vary, and lands seconds away
        place = 0
        while place < first:
            read = len(_decode(path, file, min(first - place, round(_BLOCK_SECONDS * file.samplerate))))
            if read == 0:
                raise AudioError(path, f"cut off: no more than {place} samples could be decoded; fetch the file again")
            place += read
    elif first:
        try:
            file.seek(first)
        except soundfile.LibsndfileError as error:
            raise AudioError(path, f"decoding failed ({error}); fetch the file again") from error
    return first


def _decode(path: str | Path | BinaryIO, file: soundfile.SoundFile, count: int) -> np.ndarray:
    """Up to `count` samples [n, channels]."""
    try:
        return file.read(count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"decoding failed ({error}); fetch the file again") from error
