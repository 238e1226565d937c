"""Clotho (Drossos et al. 2020, arXiv 1910.09387) and Clotho-AQA (Lipping et al. 2022, arXiv 2204.09634)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, Question, keep_apart, read_rows, require

SOURCE = "https://zenodo.org/records/4783391 (Clotho 2.1: clotho_captions_*.csv, clotho_audio_*.7z)"
AQA_SOURCE = "https://zenodo.org/records/6473207 (Clotho-AQA: clotho_aqa_*.csv, audio_files.zip)"
KEYS = {
    "data_folder": Key("Clotho: lists of captions and the three folders of audio.", str, result=False),
    "aqa_folder": Key("Clotho-AQA, with its lists and audio_files/; null: captions only.", str, None, result=False),
}
PARTS = {"development": "train", "validation": "valid", "evaluation": "test"}
AQA_PARTS = {"train": "train", "val": "valid", "test": "test"}
_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read_clotho_and_aqa(data_folder: str | Path, aqa_folder: str | Path | None = None) -> Iterator[Clip]:
    """Read the captions and, where its folder is given, the questions of Clotho-AQA.

    Parameters
    ----------
    data_folder : str or Path
        Folder of Clotho, see `read_clotho`.
    aqa_folder : str or Path, optional
        Folder of Clotho-AQA, see `read_clotho_aqa`.

    Yields
    ------
    Clip
        Of both corpora. A recording that one of them holds out is in no training clip of the other.

    Raises
    ------
    CorpusError
        A list or folder is missing, or a list is not in its format.

    Examples
    --------
    >>> folder, header = getfixture("tmp_path"), ",".join(("file_name", *_CAPTIONS))
    >>> for part in PARTS:
    ...     (folder / part).mkdir()
    ...     line = f"{part}.wav,rain falls,it rains,rain,drops fall,a shower"
    ...     _ = (folder / f"clotho_captions_{part}.csv").write_text(f"{header}\\n{line}\\n")
    >>> [(clip.id, clip.split) for clip in read_clotho_and_aqa(folder)]
    [('development.wav', 'train'), ('validation.wav', 'valid'), ('evaluation.wav', 'test')]
    """
    corpora = [lambda: read_clotho(data_folder)]
    if aqa_folder is not None:
        corpora.append(lambda: read_clotho_aqa(aqa_folder, data_folder))
    return keep_apart(corpora)


def read_clotho(data_folder: str | Path, parts: Sequence[str] = tuple(PARTS)) -> Iterator[Clip]:
    """Read the captions.

    Parameters
    ----------
    data_folder : str or Path
        Contains clotho_captions_<part>.csv (file_name, caption_1 ... caption_5) and the audio in <part>/. With
        clotho_metadata_<part>.csv in the same folder, the group is the Freesound recording.
    parts : sequence of str
        One or more of development, validation, evaluation.

    Yields
    ------
    Clip
        With its five captions.

    Raises
    ------
    CorpusError
        A list or folder is missing, or a list is not in its format.

    Examples
    --------
    >>> folder, header = getfixture("tmp_path"), ",".join(("file_name", *_CAPTIONS))
    >>> (folder / "evaluation").mkdir()
    >>> line = "rain.wav,rain falls,it rains,rain,drops fall,a shower"
    >>> _ = (folder / "clotho_captions_evaluation.csv").write_text(f"{header}\\n{line}\\n")
    >>> [(clip.id, clip.split, clip.captions[:2]) for clip in read_clotho(folder, ["evaluation"])]
    [('rain.wav', 'test', ('rain falls', 'it rains'))]
    """
    folder = Path(data_folder)
    require(folder, [name for part in parts for name in (f"clotho_captions_{part}.csv", part)], "Clotho", SOURCE)
    for part in parts:
        sounds = _freesound(folder / f"clotho_metadata_{part}.csv")
        for row in read_rows(folder / f"clotho_captions_{part}.csv", ("file_name", *_CAPTIONS), SOURCE):
            name = row["file_name"]
            yield Clip(
                dataset="Clotho",
                id=name,
                audio=folder / part / name,
                split=PARTS[part],
                group=sounds.get(name, f"clotho {name}"),
                captions=tuple(row[caption] for caption in _CAPTIONS),
            )


def read_clotho_aqa(data_folder: str | Path, clotho_folder: str | Path | None = None) -> Iterator[Clip]:
    """Read the questions. The split differs from that of Clotho: `data_prep.clips.keep_apart` joins the two.

    Parameters
    ----------
    data_folder : str or Path
        Contains clotho_aqa_{train,val,test}.csv (file_name, QuestionText, answer, confidence), with one line for each
        of the three answers to a question, and audio_files/.
    clotho_folder : str or Path, optional
        Folder of Clotho. With its metadata, the groups of both corpora have the same names.

    Yields
    ------
    Clip
        With its questions, each with all its answers. A question whose answers are all yes or no is closed.

    Raises
    ------
    CorpusError
        A list or folder is missing, or a list is not in its format.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "audio_files").mkdir()
    >>> lines = "".join(f"rain.wav,Does it rain?,{answer},yes\\n" for answer in ("yes", "yes", "no"))
    >>> for part, text in {"train": lines, "val": "", "test": ""}.items():
    ...     _ = (folder / f"clotho_aqa_{part}.csv").write_text(f"file_name,QuestionText,answer,confidence\\n{text}")
    >>> [(clip.split, *clip.questions) for clip in read_clotho_aqa(folder)]
    [('train', Question(question='Does it rain?', answers=('yes', 'yes', 'no'), choices=('yes', 'no'), task='qa'))]
    """
    folder = Path(data_folder)
    require(folder, [*(f"clotho_aqa_{part}.csv" for part in AQA_PARTS), "audio_files"], "Clotho-AQA", AQA_SOURCE)
    sounds: dict[str, str] = {}
    for part in PARTS if clotho_folder is not None else ():
        sounds |= _freesound(Path(clotho_folder) / f"clotho_metadata_{part}.csv")
    for part, split in AQA_PARTS.items():
        answers: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in read_rows(folder / f"clotho_aqa_{part}.csv", ("file_name", "QuestionText", "answer"), AQA_SOURCE):
            answers[row["file_name"]][row["QuestionText"]].append(row["answer"].lower())
        for name, questions in answers.items():
            yield Clip(
                dataset="Clotho-AQA",
                id=name,
                audio=folder / "audio_files" / name,
                split=split,
                group=sounds.get(name, f"clotho {name}"),
                questions=tuple(
                    Question(question, tuple(given), ("yes", "no") if set(given) <= {"yes", "no"} else ())
                    for question, given in questions.items()
                ),
            )


def _freesound(file: Path) -> dict[str, str]:
    """Map file names to Freesound recordings; empty where the metadata were not downloaded."""
    if not file.exists():
        return {}
    # The lists are in Latin-1; file names and numbers in them are the same text in UTF-8.
    rows = read_rows(file, ("file_name", "sound_id"), SOURCE, encoding="latin-1")
    return {row["file_name"]: f"freesound {row['sound_id']}" for row in rows if row["sound_id"].isdigit()}
