"""LibriTTS (Zen et al. 2019, arXiv 1904.02882): LibriVox readings with punctuated text, 24 kHz."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.audio_index import walk
from data_prep.clips import Clip, read_lines, read_rows, require

SOURCE = "https://www.openslr.org/60/ (train-clean-100.tar.gz and so on)"
KEYS = {
    "data_folder": Key("LibriTTS/, with speakers.tsv and the subsets.", str, result=False),
    "subsets": Key("Split -> folders of LibriTTS, under train, valid and test.", dict),
}
_TEXT = ".normalized.txt"
_GENDER = {"M": "male", "F": "female"}


def read_libritts(data_folder: str | Path, subsets: Mapping[str, Sequence[str]]) -> Iterator[Clip]:
    """Read the chapters of some subsets.

    Parameters
    ----------
    data_folder : str or Path
        LibriTTS/, with speakers.tsv and <subset>/<speaker>/<chapter>/<utterance>.wav. The text is the third column of
        the chapter's <speaker>_<chapter>.trans.tsv or, without that file, <utterance>.normalized.txt.
    subsets : mapping
        Split -> subsets, as for LibriSpeech; no speaker is in two of the train, dev and test subsets.

    Yields
    ------
    Clip
        With text (normalised by the publisher: numbers in words, case and punctuation kept) and gender; dataset is
        LibriTTS-<subset>. Readers have the same groups as in LibriSpeech.

    Raises
    ------
    CorpusError
        A subset or speakers.tsv is missing or not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> chapter = folder / "dev-clean/84/121123"
    >>> chapter.mkdir(parents=True)
    >>> _ = (folder / "speakers.tsv").write_text("READER\\tGENDER\\n84\\tF\\n")
    >>> _ = (chapter / "84_121123_000007_000001.normalized.txt").write_text("Go! Do you hear?")
    >>> clips = read_libritts(folder, {"valid": ["dev-clean"]})
    >>> [(clip.dataset, clip.id, clip.gender, clip.text) for clip in clips]
    [('LibriTTS-dev-clean', '84_121123_000007_000001', 'female', 'Go! Do you hear?')]
    """
    folder = Path(data_folder)
    require(folder, ["speakers.tsv", *(name for names in subsets.values() for name in names)], "LibriTTS", SOURCE)
    readers = read_rows(folder / "speakers.tsv", ("READER", "GENDER"), SOURCE, delimiter="\t")
    genders = {row["READER"]: _GENDER.get(row["GENDER"]) for row in readers}
    for split, names in subsets.items():
        for subset in names:
            for chapter, files in walk(folder / subset):
                speaker = chapter.parent.name
                for file, text in _utterances(chapter, files):
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


def _utterances(chapter: Path, files: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield (file, text) of one chapter, also for an utterance that has a text and no audio."""
    texts: dict[str, str] = {}
    for name in files:
        if name.endswith(".trans.tsv"):
            for _, line in read_lines(chapter / name):
                utterance, *versions = line.split("\t")
                texts[utterance] = versions[-1].strip() if versions else ""
    existing = set(files)
    endings = (".wav", _TEXT)
    for utterance in dict.fromkeys(name.removesuffix(end) for name in files for end in endings if name.endswith(end)):
        if utterance not in texts and utterance + _TEXT in existing:
            texts[utterance] = (chapter / (utterance + _TEXT)).read_text(encoding="utf-8").strip()
        yield chapter / f"{utterance}.wav", texts.get(utterance, "")
