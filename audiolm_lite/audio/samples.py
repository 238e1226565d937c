"""Audio in memory: samples with their rate, read like a file."""

from typing import Any

import numpy as np

# Types of integer samples, and what full scale (1.0) and silence are in each.
_INTEGERS = {"int8": (128.0, 0.0), "int16": (32768.0, 0.0), "int32": (2147483648.0, 0.0), "uint8": (128.0, 128.0)}


class SampleArray:
    """Samples of any common type, with the functions of a `SoundFile`; they are converted when they are read.

    Parameters
    ----------
    samples : ndarray
        [S] or [S, channels]; float16, float32 or float64 with full scale 1, or int8, int16, int32, uint8.
    samplerate : int
        Their rate in Hz.
    name : str
        For messages.

    Raises
    ------
    ValueError
        Samples of another type.

    Examples
    --------
    >>> audio = SampleArray(np.array([16384, -32768], dtype=np.int16), 8000)
    >>> audio.frames, audio.channels, audio.read(9).tolist()
    (2, 1, [[0.5], [-1.0]])
    """

    format = "array"

    def __init__(self, samples: np.ndarray, samplerate: int, name: str = "waveform"):
        if samples.dtype.kind != "f" and samples.dtype.name not in _INTEGERS:
            raise ValueError(
                f"{name}: samples of type {samples.dtype} have no known full scale; give floats from -1 to 1, or int16"
            )
        self._samples = samples if samples.ndim == 2 else samples[:, None]
        self.samplerate, self.name = samplerate, name
        self.frames, self.channels = self._samples.shape
        self._position = 0

    def __enter__(self) -> "SampleArray":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, frame: int) -> None:
        """Move to a sample."""
        self._position = frame

    def read(self, frames: int, **options: Any) -> np.ndarray:
        """Return the next samples [n, channels] float32, fewer than `frames` at the end only.

        `options` are those of `SoundFile.read`: their only values here are dtype="float32" and always_2d=True.
        """
        block = self._samples[self._position : self._position + frames]
        self._position += len(block)
        if block.dtype.kind == "f":
            return block.astype(np.float32)
        scale, silence = _INTEGERS[block.dtype.name]
        return ((block.astype(np.float64) - silence) / scale).astype(np.float32)
