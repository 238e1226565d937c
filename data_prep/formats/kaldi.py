"""Kaldi: a folder with wav.scp, text and, if present, segments, utt2spk, spk2gender, utt2lang."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path

from audiolm_lite.data.manifest import audio_path
from data_prep.clips import read_table
from data_prep.formats import FormatError, Report, Row, checked_rows, new_folder, target_entries

_GENDER = {"m": "male", "f": "female"}
_LETTER = {word: letter for letter, word in _GENDER.items()}
_STORED = {"id", "audio", "start", "duration", "target", "speaker", "language"}


def read(path: Path, report: Report, defaults: Mapping[str, str]) -> Iterator[Row]:
    """Yield one row per utterance or, without segments, per recording.

    A command in place of a path ("sox ... |") is never executed: its utterances are rejected.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> files = {"wav.scp": "r1 /data/r1.wav", "segments": "u1 r1 2.0 3.5", "text": "u1 hello", "utt2spk": "u1 anna"}
    >>> for name, line in files.items():
    ...     _ = (folder / name).write_text(line)
    >>> rows = read(folder, Report(), {"dataset": "d", "split": "train", "task": "asr", "instruction": "Transcribe."})
    >>> [(row["id"], row["audio"], row["start"], row["duration"], row["speaker"]) for row in rows]
    [('u1', '/data/r1.wav', 2.0, 1.5, 'anna')]
    """
    for name in ("wav.scp", "text"):
        if not (path / name).is_file():
            raise FormatError(f"{path / name}: no such file; give a Kaldi data folder, such as data/train")
    names = ("wav.scp", "text", "segments", "utt2spk", "spk2gender", "utt2lang")
    try:
        tables = {name: read_table(path / name) if (path / name).is_file() else {} for name in names}
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not in UTF-8 ({error}); convert its files with iconv") from error
    has_segments = (path / "segments").is_file()
    utterances = tables["segments" if has_segments else "wav.scp"]

    def to_row(utterance: str) -> Row:
        row: Row = {"id": utterance, "start": 0.0, "duration": None}
        if utterance not in utterances:
            raise FormatError(f"is in text, but not in {'segments' if has_segments else 'wav.scp'}; add or remove it")
        recording = utterance
        if has_segments:
            recording, row["start"], row["duration"] = _segment(utterances[utterance])
        if recording not in tables["wav.scp"]:
            raise FormatError(f"recording {recording} is not in wav.scp; add it")
        row["audio"] = _plain_path(tables["wav.scp"][recording])
        if utterance not in tables["text"]:
            raise FormatError("has no line in text; add its transcript, or remove the utterance")
        row["target"] = tables["text"][utterance]
        # Kaldi requires a speaker for every utterance; the utterance's name stands for an unknown one.
        speaker = tables["utt2spk"].get(utterance, utterance)
        row["speaker"] = "" if speaker == utterance else speaker
        if utterance in tables["utt2lang"]:
            row["language"] = tables["utt2lang"][utterance]
        if speaker in tables["spk2gender"]:
            gender = tables["spk2gender"][speaker]
            row["gender"] = _GENDER.get(gender, gender)
        return row

    listed = dict.fromkeys([*utterances, *tables["text"]])
    return checked_rows(path, ((name, name) for name in listed), to_row, report, defaults, unit="utterance")


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write a folder with files sorted as Kaldi requires, and `segments` if any row is a segment of its file.

    Paths are absolute, because Kaldi's are not relative to the folder. Rows are rejected if their id contains spaces,
    or if their path or target contains a line break.

    Examples
    --------
    >>> folder = getfixture("tmp_path") / "train"
    >>> row = {"id": "u1", "audio": "/data/r1.wav", "start": 2.0, "duration": 1.5, "target": "hello"}
    >>> row |= {"speaker": "anna", "language": "en", "references": ["hello"]}
    >>> write([row], folder, Report())
    >>> sorted(file.name for file in folder.iterdir())
    ['segments', 'spk2utt', 'text', 'utt2lang', 'utt2spk', 'wav.scp']
    >>> (folder / "segments").read_text()
    'u1 u1 2.0 3.5\\n'
    """
    entries = list(target_entries(rows, lambda row: _checked(row, path, report), report))
    files: dict[str, list[tuple[str, str]]] = defaultdict(list, {"wav.scp": [], "text": []})
    has_segments = any(row["start"] > 0 or row["duration"] is not None for row in entries)
    recordings: dict[str, str] = {}  # audio -> the first id that has it
    speakers: dict[str, list[str]] = defaultdict(list)
    genders: dict[str, str] = {}
    for row in entries:
        utterance = row["id"]
        if has_segments:
            recording = recordings.setdefault(row["audio"], utterance)
            files["segments"].append((utterance, f"{recording} {_times(row)}"))
        else:
            files["wav.scp"].append((utterance, row["audio"]))
        speaker = row["speaker"] or utterance
        speakers[speaker].append(utterance)
        if "gender" in row and genders.setdefault(speaker, row["gender"]) != row["gender"]:
            report.lost["gender"] += 1
        files["text"].append((utterance, row["target"]))
        files["utt2spk"].append((utterance, speaker))
        files["utt2lang"].append((utterance, row["language"]))
    if has_segments:
        files["wav.scp"] = [(recording, audio) for audio, recording in recordings.items()]
    files["spk2utt"] = [(speaker, " ".join(sorted(members))) for speaker, members in speakers.items()]
    if genders:
        files["spk2gender"] = [(speaker, _LETTER[gender]) for speaker, gender in genders.items()]
    with new_folder(path) as folder:
        for name, lines in files.items():
            text = "".join(f"{key} {value}".rstrip(" ") + "\n" for key, value in sorted(lines))
            (folder / name).write_text(text, encoding="utf-8", newline="")


def _segment(line: str) -> tuple[str, float, float | None]:
    """Recording, start and duration in a line of segments; an end of -1 is the end of the recording."""
    try:
        recording, start, end = line.split()
        first, last = Decimal(start), Decimal(end)  # decimal, so that converting between end and duration is exact
    except (ValueError, InvalidOperation) as error:
        raise FormatError(f'segments: "{line}" is not "recording start end" in seconds; correct it') from error
    return recording, float(first), None if last == -1 else float(last - first)


def _times(row: Row) -> str:
    start = Decimal(repr(row["start"]))
    end = -1 if row["duration"] is None else start + Decimal(repr(row["duration"]))
    return f"{start:f} {end:f}"


def _plain_path(entry: str) -> str:
    if entry.startswith("|") or entry.endswith("|"):
        raise FormatError(
            f"wav.scp has a command ({entry:.80}), and commands are never executed; "
            "run it yourself, and give the path of its output file"
        )
    if re.search(r"\.ark:\d+$", entry):
        raise FormatError(f"wav.scp gives a position in an archive ({entry:.80}); copy its audio to files of their own")
    return entry


def _checked(row: Row, path: Path, report: Report) -> Row:
    """Row that Kaldi can store, with an absolute path; counts the fields that it cannot store."""
    audio = os.path.abspath(audio_path(path, row))
    if re.search(r"\s", row["id"]):
        raise FormatError("Kaldi's ids contain no spaces; give the row another id")
    if re.search(r"[\r\n]", audio + row["target"]):
        raise FormatError("Kaldi's paths and texts are single lines; remove the line break")
    if audio != audio.strip() or audio.endswith("|"):
        raise FormatError(f"Kaldi cannot use {audio!r} as a path; rename the file")
    row = {**row, "audio": audio}
    if row["target"] != row["target"].strip():
        report.lost["target (spaces around it)"] += 1
    for name in ("speaker", "language"):
        if re.search(r"\s", row[name]) or row[name] == row["id"] or (name == "language" and not row[name]):
            report.lost[name] += 1
            row[name] = "" if name == "speaker" else "und"
    if "gender" in row and row["gender"] not in tuple(_LETTER):
        report.lost["gender"] += 1
        del row["gender"]
    report.lost.update(name for name in row if name not in _STORED | {"gender", "references"})
    if row["references"] != [row["target"]]:
        report.lost["references"] += 1
    return row
