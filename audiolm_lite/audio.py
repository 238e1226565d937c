"""Reading audio: whatever libsndfile decodes becomes mono float32 at the model's rate, or an error saying why."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

SAMPLE_RATE = 16000
# Part of every feature store's fingerprint: change it whenever `read_audio` changes the samples that a model hears.
AUDIO_RULES = f"mono by mean, {SAMPLE_RATE} Hz by soxr HQ, float32"
# Samples without a header, as Korean corpora publish them (KsponSpeech): nothing in such a file tells its format.
_HEADERLESS = {"samplerate": 16000, "channels": 1, "format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}
# Manifests round seconds, so a segment may end this much (in seconds) after the audio.
TOLERANCE = 0.01


class AudioError(ValueError):
    """An audio file that cannot be used.

    Attributes
    ----------
    path : str
        The file.
    reason : str
        What is wrong with it and what to do.
    """

    def __init__(self, path: str | Path | BinaryIO, reason: str):
        name = str(path if isinstance(path, str | Path) else path.name)
        super().__init__(name, reason)  # both in args, so that it survives the way out of a worker process
        self.path, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_audio(
    path: str | Path | BinaryIO, start: float = 0.0, duration: float | None = None, sample_rate: int = SAMPLE_RATE
) -> Tensor:
    """Read a file or a segment of it.

    Parameters
    ----------
    path : str, Path or binary file
        WAV, FLAC, OGG, MP3 and whatever else libsndfile decodes. A .pcm without a header is taken for mono, 16 kHz,
        16 bit, little endian. Messages call an open file by its attribute `name`.
    start : float
        Where the segment begins, in seconds.
    duration : float, optional
        Length of the segment in seconds; to the end of the file if None.
    sample_rate : int
        Rate of the result in Hz; other rates are converted with soxr (HQ).

    Returns
    -------
    Tensor
        Samples [S], float32, the mean of the channels.

    Raises
    ------
    AudioError
        Missing, empty, not decodable or cut-off file; a segment that is not inside it; NaN or infinite samples.
    """
    if start < 0 or (duration is not None and duration <= 0):
        raise AudioError(path, f"segment {start} s + {duration} s: start must be >= 0 and duration > 0")
    with _open(path) as file:
        rate, length = file.samplerate, file.frames / file.samplerate
        end = length if duration is None else start + duration
        if start >= length or end > length + TOLERANCE:
            raise AudioError(
                path,
                f"segment {start:g} s to {end:g} s is not inside the {length:g} s of audio; correct start/duration",
            )
        first, last = round(start * rate), min(round(end * rate), file.frames)
        try:
            file.seek(first)
            samples = file.read(last - first, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(path, f"decoding failed ({error}); fetch the file again") from error
    if len(samples) < last - first:
        raise AudioError(
            path, f"cut off: {len(samples)} of {last - first} samples could be decoded; fetch the file again"
        )
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).any(axis=1).argmax())
        raise AudioError(path, f"NaN or infinite sample at {(first + bad) / rate:g} s; make the file again")
    samples = samples.mean(axis=1)
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="HQ")
    if len(samples) == 0:
        raise AudioError(path, f"segment {start:g} s to {end:g} s holds no sample; make it longer")
    return torch.from_numpy(samples)


def audio_duration(path: str | Path) -> float:
    """Duration of a file in seconds, from its header; raises AudioError as `read_audio` does."""
    rate, samples, _ = audio_header(path)
    return samples / rate


def audio_header(path: str | Path) -> tuple[int, int, int]:
    """Rate in Hz, samples and channels of a file, from its header; raises AudioError as `read_audio` does."""
    with _open(path) as file:
        return file.samplerate, file.frames, file.channels


def _open(path: str | Path | BinaryIO) -> soundfile.SoundFile:
    if isinstance(path, str | Path):
        path = Path(path)
        if path.is_dir():
            raise AudioError(path, "is a directory; name an audio file")
        if not path.exists():
            raise AudioError(path, "no such file; check the path and the folder it is relative to")
    try:
        source = str(path) if isinstance(path, Path) else path
        file = soundfile.SoundFile(source, **(_HEADERLESS if _is_headerless(path) else {}))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless .raw, which needs a rate
        raise AudioError(
            path, f"not readable as audio ({error}); convert it to WAV or FLAC, or fetch it again"
        ) from error
    if file.frames <= 0:
        file.close()
        raise AudioError(path, "holds no audio; remove it or make it again")
    return file


def _is_headerless(path: Path | BinaryIO) -> bool:
    """Whether a file is bare samples: named .pcm, and not a WAV under that name."""
    if Path(path.name).suffix.lower() != ".pcm":
        return False
    with path.open("rb") if isinstance(path, Path) else nullcontext(path) as file:
        start, size = file.read(4), file.seek(0, os.SEEK_END)
        file.seek(0)
    if start == b"RIFF":
        return False
    if size % 2:
        raise AudioError(path, "an odd number of bytes cannot be 16-bit samples; fetch the file again")
    return True
