"""Any corpus in Kaldi's data folders: wav.scp, text, utt2spk and, if present, segments, spk2gender and spk2age."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from audiolm_lite.config.keys import Key
from data_prep.clips import Clip, CorpusError, read_table, require

KEYS = {
    "data_folder": Key("Folder that contains the data folders.", str, result=False),
    "parts": Key("Split -> data folder, under train, valid and test.", dict),
    "audio_root": Key("Folder that relative paths of wav.scp start from; null: data_folder.", str, None, result=False),
    "dataset": Key("Name of the corpus in the manifests.", str),
    "language": Key("ISO 639-1 code of the speech, such as ko.", str),
}
_GENDER = {"m": "male", "f": "female"}


def read_kaldi(
    data_folder: str | Path, parts: Mapping[str, str], audio_root: str | Path | None, dataset: str, language: str
) -> Iterator[Clip]:
    """Read a Kaldi data folder for each split.

    Parameters
    ----------
    data_folder : str or Path
        Contains the data folders.
    parts : mapping
        Split -> data folder, such as {"train": "train", "valid": "dev", "test": "test"}.
    audio_root : str or Path, optional
        Folder that relative paths of wav.scp start from (in Kaldi, the folder of run.sh); by default `data_folder`.
    dataset : str
        Name of the corpus.
    language : str
        ISO 639-1 code, such as ko.

    Yields
    ------
    Clip
        With the text as published, and gender and age if the folder records them.

    Raises
    ------
    CorpusError
        A file is missing or not in its format, a speaker is in two splits, or wav.scp contains a command in place of a
        path. Commands are never executed.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> (folder / "dev").mkdir()
    >>> for name, line in {"wav.scp": "u1 wav/u1.wav", "text": "u1 안녕", "utt2spk": "u1 s1"}.items():
    ...     _ = (folder / "dev" / name).write_text(line, encoding="utf-8")
    >>> clips = read_kaldi(folder, {"valid": "dev"}, None, dataset="Zeroth", language="ko")
    >>> [(clip.id, clip.split, clip.speaker, clip.text) for clip in clips]
    [('u1', 'valid', 's1', '안녕')]
    """
    folder = Path(data_folder)
    needed = [f"{part}/{name}" for part in parts.values() for name in ("wav.scp", "text", "utt2spk")]
    require(
        folder, needed, dataset, "its publisher, or create it with the corpus's Kaldi recipe (data preparation only)"
    )
    seen: dict[str, str] = {}
    for split, part in parts.items():
        for clip in read_kaldi_part(folder / part, Path(audio_root or folder), dataset, split, language):
            if seen.setdefault(clip.group, split) != split:
                raise CorpusError(
                    f"{folder / part / 'utt2spk'}: speaker {clip.speaker} is in {parts[seen[clip.group]]} as well; "
                    "split the corpus again so that no speaker is in two parts"
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
    """Read one data folder; `normalise` is applied to each transcript, other arguments are those of `read_kaldi`.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> files = {"wav.scp": "r1 r1.wav", "segments": "u1 r1 2.0 3.5", "text": "u1 HELLO", "utt2spk": "u1 s1"}
    >>> for name, line in files.items():
    ...     _ = (folder / name).write_text(line)
    >>> clips = read_kaldi_part(folder, folder, "corpus", "train", normalise=str.lower)
    >>> [(clip.id, clip.audio.name, clip.start, clip.duration, clip.text) for clip in clips]
    [('u1', 'r1.wav', 2.0, 1.5, 'hello')]
    """
    tables = {
        name: read_table(folder / name) if (folder / name).exists() else {}
        for name in ("wav.scp", "text", "utt2spk", "segments", "spk2gender", "spk2age")
    }
    for utterance, (recording, start, duration) in _utterances(folder, tables).items():
        if recording not in tables["wav.scp"]:
            raise CorpusError(
                f"{folder / 'segments'}: {recording} of {utterance} is not in wav.scp; create the folder again"
            )
        file = tables["wav.scp"][recording]
        if file.endswith("|"):
            raise CorpusError(
                f"{folder / 'wav.scp'}: {recording} is a command, which is never executed; write its audio to a "
                "file, for instance with Kaldi's wav-copy, and give that file's path"
            )
        if utterance not in tables["utt2spk"]:
            raise CorpusError(f"{folder / 'utt2spk'}: no speaker for {utterance} of wav.scp; download it again")
        speaker = tables["utt2spk"][utterance]
        age, gender = tables["spk2age"].get(speaker), tables["spk2gender"].get(speaker)
        if age is not None and not age.isdigit():
            raise CorpusError(
                f"{folder / 'spk2age'}: {age!r} of {speaker} is not a whole number of years; correct the line"
            )
        if gender is not None and gender not in _GENDER:
            raise CorpusError(f"{folder / 'spk2gender'}: {gender!r} of {speaker} is neither m nor f; correct the line")
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
    """Map utterances to recording, start and duration; without segments, each recording is one utterance."""
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
