"""Decoding of what libsndfile cannot decode (m4a, AAC, WebM ...), by FFmpeg's libraries, which PyAV contains."""

from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.audio.samples import SampleArray

# Seconds that a decoded stream may be shorter than its container records: delays of encoders, rounded durations.
_TOLERANCE = 0.25
_COUNTED_AT_ONCE = 1 << 18
# Demuxers whose containers record durations. The others estimate them from a bitrate.
_RECORD_DURATION = ("mov", "matroska", "asf", "avi", "flv", "wv", "ape")

# Types of samples by FFmpeg's names, to which it adds a "p" where each channel has a plane of its own.
_DTYPES = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}


class ContainerAudio:
    """The first audio stream of a container, with the functions of a `SoundFile` that cannot seek.

    Parameters
    ----------
    source : Path or binary file
        The encoded audio. A file object is read from its beginning and stays open.
    demuxer : str
        FFmpeg's name of the container: nothing in the file selects another one, such as a playlist, which would open
        further files.
    kind : str
        What the file is, for messages: "MPEG-4 audio (m4a, mp4)".

    Attributes
    ----------
    samplerate, channels : int
        Of the stream.
    format : str
        The name of the demuxer.

    Raises
    ------
    AudioError
        The package av is missing, the file has no audio stream, or FFmpeg cannot decode it.

    Examples
    --------
    >>> import io, soundfile
    >>> file = io.BytesIO()
    >>> soundfile.write(file, np.zeros((800, 2)), 16000, format="WAV")
    >>> with ContainerAudio(file, "wav", "WAV") as audio:
    ...     audio.samplerate, audio.channels, audio.frames, audio.read(500).shape, audio.read(500).shape
    (16000, 2, 800, (500, 2), (300, 2))
    """

    def __init__(self, source: Path | BinaryIO, demuxer: str, kind: str):
        self.source, self.format, self.kind = source, demuxer, kind
        self._stream = source.open("rb") if isinstance(source, Path) else source
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            import av
        except ImportError as error:
            reason = f"is {self.kind}, which the package av decodes; run: pip install av, or convert it to WAV or FLAC"
            raise AudioError(self.source, reason) from error
        self._errors: tuple[type[Exception], ...] = (av.FFmpegError, ValueError, RuntimeError)
        self._stream.seek(0)
        try:
            self._container: Any = av.open(self._stream, format=self.format, metadata_errors="replace")
            streams = self._container.streams.audio
        except self._errors as error:
            raise self._damaged(error) from error
        if not streams:
            raise AudioError(self.source, f"is {self.kind} without an audio stream; name a file with sound")
        self._audio: Any = streams[0]
        self.samplerate, self.channels = self._audio.codec_context.sample_rate, self._audio.codec_context.channels
        if not self.samplerate or not self.channels:
            raise AudioError(self.source, f"is {self.kind} of no known rate or codec; convert it to WAV or FLAC")
        # Neither threads of codecs nor filters such as AudioResampler: in a forked process, they wait for ever.
        self._audio.codec_context.thread_count = 1
        self._decoded, self._blocks = 0, self._decode()
        self._rest = np.zeros((0, self.channels), dtype=np.float32)

    @property
    def frames(self) -> int:
        """Samples per channel, counted by decoding the stream once, since containers record them inexactly."""
        if isinstance(self.source, Path):
            status = self.source.stat()
            return _count(self.source, self.format, self.kind, status.st_size, status.st_mtime_ns)
        position = self._stream.tell()
        try:
            return _count_frames(self.source, self.format, self.kind)
        finally:
            self._stream.seek(position)

    def seekable(self) -> bool:
        """Return False: positions in containers are inexact, so samples before a segment are decoded."""
        return False

    def read(self, frames: int, **options: Any) -> np.ndarray:
        """Decode the next samples [n, channels] float32, fewer than `frames` at the end only.

        `options` are those of `SoundFile.read`: their only values here are dtype="float32" and always_2d=True.

        Raises
        ------
        AudioError
            The stream is damaged or truncated.
        """
        parts, missing = [self._rest[:frames]], frames - len(self._rest)
        self._rest = self._rest[frames:]
        while missing > 0 and (block := next(self._blocks, None)) is not None:
            parts.append(block[:missing])
            self._rest, missing = block[missing:], missing - len(block)
        return np.concatenate(parts)

    def _decode(self) -> Iterator[np.ndarray]:
        """Yield blocks of samples [n, channels] to the end of the stream."""
        try:
            for frame in self._container.decode(self._audio):
                block = self._samples(frame)
                self._decoded += len(block)
                yield block
        except self._errors as error:
            raise self._damaged(error) from error
        recorded, seconds = self._recorded_seconds(), self._decoded / self.samplerate
        if recorded is not None and seconds < recorded - _TOLERANCE:
            reason = f"truncated: {seconds:.2f} s of {recorded:.2f} s could be decoded; download the file again"
            raise AudioError(self.source, reason)

    def _samples(self, frame: Any) -> np.ndarray:
        """Samples [n, channels] float32 of a decoded frame."""
        if (frame.sample_rate, frame.layout.nb_channels) != (self.samplerate, self.channels):
            seconds = self._decoded / self.samplerate
            reason = f"is {self.kind} whose rate or channels change after {seconds:g} s; convert it to WAV or FLAC"
            raise AudioError(self.source, reason)
        # Not `frame.to_ndarray`: of eight planes and more, PyAV 18 reads one that does not exist, which may crash.
        dtype = _DTYPES.get(frame.format.name.removesuffix("p"))
        if dtype is None:
            raise ValueError(f"samples of the type {frame.format.name}")
        if frame.format.is_planar:
            planes = frame.planes[: self.channels]
            values = np.stack([np.frombuffer(plane, dtype)[: frame.samples] for plane in planes], axis=1)
        else:
            values = np.frombuffer(frame.planes[0], dtype)[: frame.samples * self.channels].reshape(-1, self.channels)
        return SampleArray(values, self.samplerate).read(len(values))

    def _recorded_seconds(self) -> float | None:
        """Duration that the container records for the stream; None if it records none."""
        if self.format not in _RECORD_DURATION:
            return None
        if self._audio.duration is not None and self._audio.time_base is not None:
            return float(self._audio.duration * self._audio.time_base)
        alone = len(self._container.streams) == 1  # otherwise the duration may be that of a video
        return self._container.duration / 1e6 if alone and self._container.duration else None

    def _damaged(self, error: Exception) -> AudioError:
        reason = getattr(error, "strerror", None) or error
        return AudioError(self.source, f"is {self.kind} that cannot be decoded ({reason}); download the file again")

    def close(self) -> None:
        """Close the container, and the file if it was opened here."""
        with suppress(AttributeError):
            self._container.close()
        if isinstance(self.source, Path):
            self._stream.close()

    def __enter__(self) -> "ContainerAudio":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@lru_cache(maxsize=1 << 16)
def _count(path: Path, demuxer: str, kind: str, size: int, mtime_ns: int) -> int:
    """Samples of a file in the state of this size and time: decoding hours takes seconds."""
    return _count_frames(path, demuxer, kind)


def _count_frames(source: Path | BinaryIO, demuxer: str, kind: str) -> int:
    with ContainerAudio(source, demuxer, kind) as audio:
        samples = 0
        while count := len(audio.read(_COUNTED_AT_ONCE)):
            samples += count
        return samples
