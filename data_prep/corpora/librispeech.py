"""LibriSpeech (Panayotov et al. 2015, doi 10.1109/ICASSP.2015.7178964), and other corpora in its layout."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.audio_index import AUDIO_ENDINGS, walk
from data_prep.clips import Clip, CorpusError, read_lines, require

SOURCE = "https://www.openslr.org/12/ (train-clean-100.tar.gz and so on)"
KEYS = {
    "data_folder": Key("LibriSpeech/, with SPEAKERS.TXT and the subsets.", str, result=False),
    "subsets": Key("Split -> folders of LibriSpeech, under train, valid and test.", dict),
}
_GENDER = {"M": "male", "F": "female"}


def read_librispeech(data_folder: str | Path, subsets: Mapping[str, Sequence[str]]) -> Iterator[Clip]:
    """Read the chapters of some subsets.

    Parameters
    ----------
    data_folder : str or Path
        LibriSpeech/, with SPEAKERS.TXT and a folder for each subset.
    subsets : mapping
        Split -> subsets, such as {"train": ["train-clean-100"], "valid": ["dev-clean"], "test": ["test-clean"]}. No
        speaker is in two of the train, dev and test subsets.

    Yields
    ------
    Clip
        With text (in capitals, as published) and gender; dataset is LibriSpeech-<subset>.

    Raises
    ------
    CorpusError
        A subset or SPEAKERS.TXT is missing or not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "dev-clean/84/121123").mkdir(parents=True)
    >>> _ = (folder / "SPEAKERS.TXT").write_text("84 | F | dev-clean\\n")
    >>> _ = (folder / "dev-clean/84/121123/84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\\n")
    >>> clips = read_librispeech(folder, {"valid": ["dev-clean"]})
    >>> [(clip.dataset, clip.id, clip.speaker, clip.gender, clip.text) for clip in clips]
    [('LibriSpeech-dev-clean', '84-121123-0000', '84', 'female', 'GO DO YOU HEAR')]
    """
    folder = Path(data_folder)
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
    """Yield (file, speaker, transcript) of <speaker>/.../<utterance>.flac, whose folder has a list *.trans.txt.

    A listed utterance without a file is yielded with the path it should have. A file that is not listed has an empty
    transcript.

    Parameters
    ----------
    folder : Path
        Has one sub-folder per speaker.

    Raises
    ------
    CorpusError
        The folder contains no such list.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "84/121123").mkdir(parents=True)
    >>> _ = (folder / "84/121123/84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\\n")
    >>> [(file.name, speaker, text) for file, speaker, text in read_transcribed_folders(folder)]
    [('84-121123-0000.flac', '84', 'GO DO YOU HEAR')]
    """
    has_lists = False
    for parent, names in walk(folder):
        lists = [name for name in names if name.endswith(".trans.txt")]
        if not lists:
            continue
        has_lists = True
        speaker = parent.relative_to(folder).parts[0] if parent != folder else ""
        files = {os.path.splitext(name)[0]: name for name in names if name.lower().endswith(AUDIO_ENDINGS)}
        for name in lists:
            for _, line in read_lines(parent / name):
                utterance, _, text = line.strip().partition(" ")
                yield parent / files.pop(utterance, f"{utterance}.flac"), speaker, text.strip()
        for name in files.values():
            yield parent / name, speaker, ""
    if not has_lists:
        detail = "" if folder.is_dir() else " (there is no such folder)"
        raise CorpusError(
            f"no *.trans.txt below {folder.resolve()}{detail}; give the folder of the speakers, which contains "
            "<speaker>/.../<name>.trans.txt with the audio in the same folders"
        )


def _genders(file: Path) -> dict[str, str]:
    """Map readers to genders, from lines such as "14   | F | train-clean-360  | 25.03 | ..."; ";" begins a comment."""
    genders = {}
    for number, line in read_lines(file):
        if not line.startswith(";"):
            reader, gender, *_ = [*(part.strip() for part in line.split("|")), ""]
            if gender not in _GENDER:
                raise CorpusError(
                    f"{file}, line {number}: {gender!r} is neither M nor F; download it again from {SOURCE}"
                )
            genders[reader] = _GENDER[gender]
    return genders
