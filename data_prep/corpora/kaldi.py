"""Any corpus in Kaldi's data folders: wav.scp, text, utt2spk, and where there are, segments, spk2gender, spk2age."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from data_prep.clips import Clip, CorpusError, read_table, require

_GENDER = {"m": "male", "f": "female"}


def read_kaldi(
    folder: str | Path, parts: Mapping[str, str], audio_root: str | Path, dataset: str, language: str
) -> Iterator[Clip]:
    """Read a Kaldi data folder for each split.

    Parameters
    ----------
    folder : str or Path
        Holds the data folders.
    parts : mapping
        Split -> data folder, as {"train": "train", "valid": "dev", "test": "test"}.
    audio_root : str or Path
        What relative paths of wav.scp start from (in Kaldi, the folder that run.sh is in).
    dataset : str
        Name of the corpus.
    language : str
        ISO 639-1 code, as ko.

    Yields
    ------
    Clip
        With text as it is written, and gender and age where the folder notes them.

    Raises
    ------
    CorpusError
        A file is missing or not in its format, a speaker is in two splits, or wav.scp holds a command in place of a
        path: commands are never run.
    """
    folder = Path(folder)
    needed = [f"{part}/{name}" for part in parts.values() for name in ("wav.scp", "text", "utt2spk")]
    require(folder, needed, dataset, "its publisher, or make it with the corpus's Kaldi recipe (data preparation only)")
    seen: dict[str, str] = {}
    for split, part in parts.items():
        for clip in read_kaldi_part(folder / part, Path(audio_root), dataset, split, language):
            if seen.setdefault(clip.group, split) != split:
                raise CorpusError(
                    f"{folder / part / 'utt2spk'}: speaker {clip.speaker} is in {parts[seen[clip.group]]} as well; "
                    "make the parts again so that no speaker is in two"
                )
            yield clip


def read_kaldi_part(
    folder: Path,
    audio_root: Path,
    dataset: str,
    split: str,
    language: str = "en",
    normalise: Callable[[str], str] = str,
) -> Iterator[Clip]:
    """Read one data folder; `normalise` is applied to each transcript, other arguments are those of `read_kaldi`."""
    tables = {
        name: read_table(folder / name) if (folder / name).exists() else {}
        for name in ("wav.scp", "text", "utt2spk", "segments", "spk2gender", "spk2age")
    }
    for utterance, (recording, start, duration) in _utterances(folder, tables).items():
        if recording not in tables["wav.scp"]:
            raise CorpusError(f"{folder / 'segments'}: {recording} of {utterance} is not in wav.scp; make it again")
        file = tables["wav.scp"][recording]
        if file.endswith("|"):
            raise CorpusError(
                f"{folder / 'wav.scp'}: {recording} is a command, which is never run; write the audio to files first, "
                "for instance with Kaldi's wav-copy, and name these"
            )
        if utterance not in tables["utt2spk"]:
            raise CorpusError(f"{folder / 'utt2spk'}: no speaker for {utterance} of wav.scp; fetch it again")
        speaker = tables["utt2spk"][utterance]
        age, gender = tables["spk2age"].get(speaker), tables["spk2gender"].get(speaker)
        if age is not None and not age.isdigit():
            raise CorpusError(f"{folder / 'spk2age'}: {age!r} of {speaker} is no whole number of years")
        if gender is not None and gender not in _GENDER:
            raise CorpusError(f"{folder / 'spk2gender'}: {gender!r} of {speaker} is neither m nor f")
        yield Clip(
            dataset=dataset,
            id=utterance,
            audio=audio_root / file,
            split=split,
            group=speaker,
            start=start,
            duration=duration,
            language=language,
            speaker=speaker,
            gender=None if gender is None else _GENDER[gender],
            age=None if age is None else int(age),
            text=normalise(tables["text"].get(utterance, "")),
        )


def _utterances(folder: Path, tables: Mapping[str, dict[str, str]]) -> dict[str, tuple[str, float, float | None]]:
    """Utterance -> recording, start and duration; without segments each recording is one utterance."""
    if not tables["segments"]:
        return {utterance: (utterance, 0.0, None) for utterance in tables["wav.scp"]}
    utterances = {}
    for utterance, line in tables["segments"].items():
        try:
            recording, start, end = line.split()
            utterances[utterance] = recording, float(start), round(float(end) - float(start), 6)
        except ValueError as error:
            raise CorpusError(
                f"{folder / 'segments'}: {utterance} is followed by {line!r}; write recording, start and end in seconds"
            ) from error
    return utterances
