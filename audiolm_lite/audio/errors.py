"""The error of audio that cannot be used."""

from pathlib import Path
from typing import BinaryIO, TypeAlias

from audiolm_lite.audio.samples import SampleArray
from audiolm_lite.config.errors import UserError

# A file by its path, an open binary file with `name`, `read` and `seek`, or audio in memory.
AudioSource: TypeAlias = str | Path | BinaryIO | SampleArray


class AudioError(UserError, ValueError):
    """An audio file that cannot be used.

    Attributes
    ----------
    path : str
        The file.
    reason : str
        What is wrong with it and what to do.
    """

    def __init__(self, source: AudioSource, reason: str):
        self.path, self.reason = source_name(source), reason
        super().__init__(self.path, reason)  # both are in args, so that a worker process can pickle the error

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def source_name(source: AudioSource) -> str:
    """Path of a file, or the name of an open one or of audio in memory.

    Examples
    --------
    >>> source_name(Path("clips/a.wav"))
    'clips/a.wav'
    >>> file = (getfixture("tmp_path") / "b.wav").open("wb")
    >>> source_name(file).endswith("b.wav")
    True
    >>> file.close()
    """
    return str(source if isinstance(source, str | Path) else source.name)
