"""LibriTTS (Zen et al. 2019, arXiv 1904.02882): LibriVox readings with punctuated text, 24 kHz."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_prep.audio_index import walk
from data_prep.clips import Clip, read_lines, read_rows, require

SOURCE = "https://www.openslr.org/60/ (train-clean-100.tar.gz and so on)"
_TEXT = ".normalized.txt"
_GENDER = {"M": "male", "F": "female"}


def read_libritts(folder: str | Path, subsets: Mapping[str, Sequence[str]]) -> Iterator[Clip]:
    """Read the chapters of some subsets.

    Parameters
    ----------
    folder : str or Path
        LibriTTS/, with speakers.tsv and <subset>/<speaker>/<chapter>/<utterance>.wav. The text is the third column of
        the chapter's <speaker>_<chapter>.trans.tsv, which is read at once; without it <utterance>.normalized.txt.
    subsets : mapping
        Split -> subsets, as for LibriSpeech; the publisher keeps their speakers apart.

    Yields
    ------
    Clip
        With text (normalised by the publisher: numbers in words, case and punctuation kept) and gender; dataset is
        LibriTTS-<subset>. The group equals that of LibriSpeech's clips, whose readers are the same.

    Raises
    ------
    CorpusError
        A subset or speakers.tsv is missing or not in its format.
    """
    folder = Path(folder)
    require(folder, ["speakers.tsv", *(name for names in subsets.values() for name in names)], "LibriTTS", SOURCE)
    readers = read_rows(folder / "speakers.tsv", ("READER", "GENDER"), SOURCE, delimiter="\t")
    genders = {row["READER"]: _GENDER.get(row["GENDER"]) for row in readers}
    for split, names in subsets.items():
        for subset in names:
            for place, files in walk(folder / subset):
                speaker = place.parent.name
                for file, text in _utterances(place, files):
                    yield Clip(
                        dataset=f"LibriTTS-{subset}",
                        id=file.stem,
                        audio=file,
                        split=split,
                        group=f"librivox reader {speaker}",
                        speaker=speaker,
                        gender=genders.get(speaker),
                        text=text,
                    )


def _utterances(place: Path, files: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """(file, text) of one chapter's folder; an utterance whose text is there and whose audio is not is given, too."""
    texts: dict[str, str] = {}
    for name in files:
        if name.endswith(".trans.tsv"):
            for _, line in read_lines(place / name):
                utterance, *versions = line.split("\t")
                texts[utterance] = versions[-1].strip() if versions else ""
    there = set(files)
    endings = (".wav", _TEXT)
    for utterance in dict.fromkeys(name.removesuffix(end) for name in files for end in endings if name.endswith(end)):
        if utterance not in texts and utterance + _TEXT in there:
            texts[utterance] = (place / (utterance + _TEXT)).read_text(encoding="utf-8").strip()
        yield place / f"{utterance}.wav", texts.get(utterance, "")
