"""Where the audio of a corpus lies, when the corpus itself does not say: one walk through a folder, no file opened."""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

# In order of preference: the first that lies there is read.
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".sph", ".pcm", ".m4a", ".aac", ".mp4")


class AudioIndex:
    """Audio files below a folder, by their name without ending; about 110 bytes of memory a file.

    Corpora of YouTube clips publish a list of segments and no audio, so every copy is named in its downloader's way.

    Parameters
    ----------
    folder : Path
        All sub-folders are searched, whatever their depth.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, tuple[str, str]] = {}
        for place, names in walk(folder):
            shared = {ending: (str(place), ending) for ending in AUDIO_ENDINGS}  # one object for all files of a folder
            for name in names:
                stem, ending = os.path.splitext(name)
                ending = ending.lower()
                if ending in shared and _rank(self._files.get(stem)) > AUDIO_ENDINGS.index(ending):
                    self._files[stem] = shared[ending]

    def __len__(self) -> int:
        """Return the number of audio files with different names."""
        return len(self._files)

    def find(self, stem: str, others: Iterable[str] = ()) -> Path:
        """File of the first of these names that is there; else where the first was to be expected."""
        for name in chain((stem,), others):
            if name in self._files:
                place, ending = self._files[name]
                return Path(place, name + ending)
        return self.folder / f"{stem}.wav"

    def holds(self, file: Path) -> bool:
        """Whether a path that `find` gave is a file that is there."""
        return file.stem in self._files

    def find_youtube(self, video: str, start: float) -> Path:
        """File of a segment of a YouTube video, under any of the names that downloaders give it.

        These are the video's id alone or after a Y, or followed by the start in seconds, milliseconds or six digits.
        """
        return self.find(video, _youtube_names(video, start))


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield every folder below one (itself first) with the names of its files, in alphabetical order."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


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


def _rank(found: tuple[str, str] | None) -> int:
    return len(AUDIO_ENDINGS) if found is None else AUDIO_ENDINGS.index(found[1])
