"""Locations of a corpus's audio files when its lists do not name them: one walk through a folder, no file opened."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

# In order of preference.
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".sph", ".pcm", ".m4a", ".aac", ".mp4")


class AudioIndex:
    """Audio files in a folder, by their names without extension; about 110 bytes of memory per file.

    Corpora of YouTube clips publish a list of segments and no audio. The names of the audio files depend on the
    program that downloaded them.

    Parameters
    ----------
    folder : Path
        Searched with all its sub-folders.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "train").mkdir()
    >>> (folder / "train" / "Yabc-DEF_123.flac").touch()
    >>> index = AudioIndex(folder)
    >>> index.find_youtube("abc-DEF_123", start=30.0).relative_to(folder).as_posix()
    'train/Yabc-DEF_123.flac'
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, tuple[str, str]] = {}
        for parent, names in walk(folder):
            entries = {ending: (str(parent), ending) for ending in AUDIO_ENDINGS}  # one object per folder
            for name in names:
                stem, ending = os.path.splitext(name)
                ending = ending.lower()
                if ending in entries and _rank(self._files.get(stem)) > AUDIO_ENDINGS.index(ending):
                    self._files[stem] = entries[ending]

    def find(self, stem: str, others: Iterable[str] = ()) -> Path:
        """File of the first of these names that exists; otherwise the path at which the first one is expected."""
        for name in chain((stem,), others):
            if name in self._files:
                parent, ending = self._files[name]
                return Path(parent, name + ending)
        return self.folder / f"{stem}.wav"

    def __contains__(self, file: Path) -> bool:
        """Whether a path that `find` returned exists."""
        return file.stem in self._files

    def find_youtube(self, video: str, start: float) -> Path:
        """File of a segment of a YouTube video, by any of the names that download programs give it.

        A name is the video's id, with or without a Y before it and the start in seconds, milliseconds or six digits
        after it.
        """
        return self.find(video, _youtube_names(video, start))


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and all its sub-folders with the names of their files, in alphabetical order.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "talk").mkdir()
    >>> for name in ("talk/2.wav", "talk/1.wav", "talk/.cache", "readme.txt"):
    ...     (folder / name).touch()
    >>> [(parent.relative_to(folder).as_posix(), names) for parent, names in walk(folder)]
    [('.', ['readme.txt']), ('talk', ['1.wav', '2.wav'])]
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(parent), sorted(name for name in names if not name.startswith("."))


def _youtube_names(video: str, start: float) -> Iterator[str]:
    yield f"Y{video}"
    milliseconds = round(start * 1000)
    for name in (video, f"Y{video}"):
        yield f"{name}_{start:g}"
        yield f"{name}_{start:.3f}"
        yield f"{name}_{milliseconds}"
        yield f"{name}_{round(start):06d}"
        yield f"{name}_{start:g}_{start + 10:g}"
        yield f"{name}_{start:.3f}_{start + 10:.3f}"
        yield f"{name}_{milliseconds}_{milliseconds + 10000}"


def _rank(entry: tuple[str, str] | None) -> int:
    return len(AUDIO_ENDINGS) if entry is None else AUDIO_ENDINGS.index(entry[1])
