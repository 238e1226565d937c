"""Clotho (Drossos et al. 2020, arXiv 1910.09387) and Clotho-AQA (Lipping et al. 2022, arXiv 2204.09634)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.clips import Clip, Question, read_rows, require

SOURCE = "https://zenodo.org/records/4783391 (Clotho 2.1: clotho_captions_*.csv, clotho_audio_*.7z)"
AQA_SOURCE = "https://zenodo.org/records/6473207 (Clotho-AQA: clotho_aqa_*.csv, audio_files.zip)"
PARTS = {"development": "train", "validation": "valid", "evaluation": "test"}
AQA_PARTS = {"train": "train", "val": "valid", "test": "test"}
_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read_clotho(folder: str | Path, parts: Sequence[str] = tuple(PARTS)) -> Iterator[Clip]:
    """Read the captions.

    Parameters
    ----------
    folder : str or Path
        Holds clotho_captions_<part>.csv (file_name, caption_1 ... caption_5) and the audio in <part>/. Where
        clotho_metadata_<part>.csv lies there as well, the group is the Freesound recording.
    parts : sequence of str
        Of development, validation, evaluation.

    Yields
    ------
    Clip
        With its five captions.

    Raises
    ------
    CorpusError
        A list or folder is missing, or a list is not in its format.
    """
    folder = Path(folder)
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


def read_clotho_aqa(folder: str | Path, clotho_folder: str | Path | None = None) -> Iterator[Clip]:
    """Read the questions; its parts are not those of Clotho, so join the two with `data_prep.clips.keep_apart`.

    Parameters
    ----------
    folder : str or Path
        Holds clotho_aqa_{train,val,test}.csv (file_name, QuestionText, answer, confidence), a line for each of three
        answers to a question, and audio_files/.
    clotho_folder : str or Path, optional
        Clotho itself: with its metadata the groups of both corpora are the same.

    Yields
    ------
    Clip
        With its questions, each with all its answers; a question that is answered with yes and no only is closed.

    Raises
    ------
    CorpusError
        As `read_clotho`.
    """
    folder = Path(folder)
    require(folder, [*(f"clotho_aqa_{part}.csv" for part in AQA_PARTS), "audio_files"], "Clotho-AQA", AQA_SOURCE)
    sounds: dict[str, str] = {}
    for part in PARTS if clotho_folder is not None else ():
        sounds |= _freesound(Path(clotho_folder) / f"clotho_metadata_{part}.csv")
    for part, split in AQA_PARTS.items():
        answers: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in read_rows(folder / f"clotho_aqa_{part}.csv", ("file_name", "QuestionText", "answer"), AQA_SOURCE):
            answers[row["file_name"]][row["QuestionText"]].append(row["answer"].lower())
        for name, asked in answers.items():
            yield Clip(
                dataset="Clotho-AQA",
                id=name,
                audio=folder / "audio_files" / name,
                split=split,
                group=sounds.get(name, f"clotho {name}"),
                questions=tuple(
                    Question(question, tuple(given), ("yes", "no") if set(given) <= {"yes", "no"} else ())
                    for question, given in asked.items()
                ),
            )


def _freesound(file: Path) -> dict[str, str]:
    """File name -> Freesound recording; empty where the metadata were not downloaded."""
    if not file.exists():
        return {}
    # The lists are in Latin-1, for keywords and names; numbers and the file names of interest read the same.
    rows = read_rows(file, ("file_name", "sound_id"), SOURCE, encoding="latin-1")
    return {row["file_name"]: f"freesound {row['sound_id']}" for row in rows if row["sound_id"].isdigit()}
