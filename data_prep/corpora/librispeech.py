"""LibriSpeech (Panayotov et al. 2015, doi 10.1109/ICASSP.2015.7178964), and other corpora in its layout."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_prep.audio_index import AUDIO_ENDINGS, walk
from data_prep.clips import Clip, CorpusError, read_lines, require

SOURCE = "https://www.openslr.org/12/ (train-clean-100.tar.gz and so on)"
_GENDER = {"M": "male", "F": "female"}


def read_librispeech(folder: str | Path, subsets: Mapping[str, Sequence[str]]) -> Iterator[Clip]:
    """Read the chapters of some subsets.

    Parameters
    ----------
    folder : str or Path
        LibriSpeech/, with SPEAKERS.TXT and a folder for each subset.
    subsets : mapping
        Split -> subsets, as {"train": ["train-clean-100"], "valid": ["dev-clean"], "test": ["test-clean"]}. The
        publisher keeps speakers apart between train, dev and test subsets.

    Yields
    ------
    Clip
        With text (in capitals, as published) and gender; dataset is LibriSpeech-<subset>.

    Raises
    ------
    CorpusError
        A subset or SPEAKERS.TXT is missing or not in its format.
    """
    folder = Path(folder)
    require(folder, ["SPEAKERS.TXT", *(name for names in subsets.values() for name in names)], "LibriSpeech", SOURCE)
    genders = _genders(folder / "SPEAKERS.TXT")
    for split, names in subsets.items():
        for name in names:
            for file, speaker, text in read_transcribed_folders(folder / name):
                yield Clip(
                    dataset=f"LibriSpeech-{name}",
                    id=file.stem,
                    audio=file,
                    split=split,
                    group=f"librivox reader {speaker}",
                    speaker=speaker,
                    gender=genders.get(speaker),
                    text=text,
                )


def read_transcribed_folders(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield (file, speaker, transcript) of <speaker>/.../<utterance>.flac with a list *.trans.txt beside the files.

    A listed utterance without a file comes with the path it should have; a file that is not listed has no transcript.

    Parameters
    ----------
    folder : Path
        Its sub-folders are the speakers.

    Raises
    ------
    CorpusError
        There is no such list.
    """
    found = False
    for place, names in walk(folder):
        lists = [name for name in names if name.endswith(".trans.txt")]
        if not lists:
            continue
        found = True
        speaker = place.relative_to(folder).parts[0] if place != folder else ""
        files = {os.path.splitext(name)[0]: name for name in names if name.lower().endswith(AUDIO_ENDINGS)}
        for name in lists:
            for _, line in read_lines(place / name):
                utterance, _, text = line.strip().partition(" ")
                yield place / files.pop(utterance, f"{utterance}.flac"), speaker, text.strip()
        for name in files.values():
            yield place / name, speaker, ""
    if not found:
        lost = "" if folder.is_dir() else " (there is no such folder)"
        raise CorpusError(
            f"no *.trans.txt below {folder.resolve()}{lost}; give the folder of the speakers, "
            "<speaker>/.../<name>.trans.txt with the audio beside these lists"
        )


def _genders(file: Path) -> dict[str, str]:
    """Reader -> gender, of lines such as "14   | F | train-clean-360  | 25.03 | ..."; ";" begins a comment."""
    genders = {}
    for number, line in read_lines(file):
        if not line.startswith(";"):
            reader, gender, *_ = [*(part.strip() for part in line.split("|")), ""]
            if gender not in _GENDER:
                raise CorpusError(f"{file}, line {number}: {gender!r} is neither M nor F; fetch it again from {SOURCE}")
            genders[reader] = _GENDER[gender]
    return genders
