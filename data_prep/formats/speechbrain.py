"""SpeechBrain: a JSON object {id: {wav, duration, wrd, ...}}, or CSV with a column ID (by the file's extension)."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.audio.reading import TOLERANCE, audio_header
from audiolm_lite.data.manifest import audio_path
from data_prep.formats import (
    FormatError,
    Report,
    Row,
    checked_rows,
    parse_json,
    read_json,
    rename_from_manifest,
    rename_to_manifest,
    target_entries,
    text_file,
    to_json,
)

NAMES = {
    "audio": ("wav", "path", "file_name", "audio_path"),
    "target": ("wrd", "words", "text", "transcript", "transcription"),
    "speaker": ("spk_id", "speaker_id"),
}
# SpeechBrain replaces `{data_root}` in JSON and `$data_root` in CSV files.
_JSON_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(\w*)\}|[{}]")
_CSV_PLACEHOLDER = re.compile(r"\$([\w.]+)")
# Columns of text. A cell of another column is text too, unless it is JSON in exactly the form that `_cell` writes.
_TEXT = {"ID", "wav", "wrd", "spk_id", "instruction", "task", "dataset", "split", "language"}


def read(
    path: Path,
    report: Report,
    defaults: Mapping[str, str],
    fields: Mapping[str, tuple[str, ...]] | None = None,
    data_root: str | None = None,
) -> Iterator[Row]:
    """Yield rows. A segment is {"file", "start", "stop"} in JSON and the columns start and stop in CSV, in samples.

    Parameters
    ----------
    path : Path
        .csv or .json.
    report : Report
        Updated.
    defaults, fields : mapping
        As for the other formats.
    data_root : str, optional
        Value of the placeholder, whatever its name ({data_root}, $data_folder). Without it, rows with a placeholder are
        rejected.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.csv"
    >>> _ = file.write_text("ID,duration,wav,wrd\\nu1,1.5,$data_root/1.wav,hello\\n")
    >>> defaults = {"dataset": "d", "split": "train", "task": "asr", "instruction": "Transcribe."}
    >>> rows = read(file, Report(), defaults, data_root="/data")
    >>> [(row["id"], row["audio"], row["duration"], row["target"]) for row in rows]
    [('u1', '/data/1.wav', 1.5, 'hello')]
    """
    names = {**NAMES, **(fields or {})}

    def to_row(entry: Any) -> Row:
        row = rename_to_manifest(entry, names, report)
        audio = row.get("audio")
        if isinstance(audio, dict):
            if set(audio) - {"file", "start", "stop"} or not isinstance(audio.get("file"), str):
                raise FormatError(f'wav is {audio!r:.80}; write a path, or {{"file", "start", "stop"}}')
            first, last = audio.get("start", 0), audio.get("stop")
            row["audio"] = audio["file"]
            row |= _seconds(path, row, first, last)
        return row

    entries = _csv_entries(path, data_root) if path.suffix == ".csv" else _json_entries(path, data_root)
    return checked_rows(path, entries, to_row, report, defaults, unit="entry")


def write(rows: Iterable[Row], path: Path, report: Report, data_root: str | None = None) -> None:
    """Write .csv or .json. Each audio file's header is read, since SpeechBrain needs durations and segments in samples.

    Parameters
    ----------
    rows : iterable of dict
        Manifest rows.
    path : Path
        .csv or .json.
    report : Report
        Updated.
    data_root : str, optional
        In the paths of audio in this folder, a placeholder replaces the folder.

    Examples
    --------
    >>> import soundfile
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "1.wav", [0.0] * 800, 16000)
    >>> row = {"id": "u1", "audio": "1.wav", "start": 0.0, "duration": None, "target": "hello", "task": "asr"}
    >>> write([row], folder / "train.json", Report())
    >>> read_json(folder / "train.json")
    {'u1': {'wav': '1.wav', 'wrd': 'hello', 'duration': 0.05, 'task': 'asr'}}
    """
    as_csv = path.suffix == ".csv"

    def to_entry(row: Row) -> tuple[str, dict[str, Any]]:
        file = audio_path(path, row)
        rate, samples, _ = audio_header(file)
        first = round(row["start"] * rate)
        last = samples if row["duration"] is None else round((row["start"] + row["duration"]) * rate)
        entry = rename_from_manifest({name: row[name] for name in row if name not in ("id", "start")}, NAMES, report)
        entry["duration"] = (last - first) / rate if row["duration"] is None else row["duration"]
        if "references" in entry and entry["references"] == [row["target"]]:
            del entry["references"]
        is_full_file = first == 0 and abs(last - samples) <= TOLERANCE * rate
        if as_csv:
            for name in {"ID", "stop"} & entry.keys():  # names of SpeechBrain's own columns
                report.lost[name] += 1
                del entry[name]
            cells = {"ID": row["id"], **{name: _cell(name, value) for name, value in entry.items()}}
            if not is_full_file:
                cells |= {"start": str(first), "stop": str(last)}
            for name, value in cells.items():
                if match := _CSV_PLACEHOLDER.search(value):
                    raise FormatError(
                        f'field "{name}": SpeechBrain would replace the placeholder {match[0]}; reword it'
                    )
            cells["wav"] = _with_placeholder(cells["wav"], file, data_root, "$data_root")
            return row["id"], cells
        entry = _map_text(entry, lambda text: text.replace("{", "{{").replace("}", "}}"))
        entry["wav"] = _with_placeholder(entry["wav"], file, data_root, "{data_root}")
        if not is_full_file:
            entry["wav"] = {"file": entry["wav"], "start": first, "stop": last}
        return row["id"], entry

    entries = target_entries(rows, to_entry, report)
    if as_csv:
        _write_csv(entries, path)
        return
    with text_file(path) as file:
        file.write("{")
        for number, (key, entry) in enumerate(entries):
            file.write(f"{',' if number else ''}\n{to_json(key)}: {to_json(entry)}")
        file.write("\n}\n")


def _seconds(path: Path, row: Row, first: Any, last: Any) -> Row:
    """Start and duration from samples; a stop that is missing or equal to the start is the end of the file."""
    if not all(isinstance(value, int) and value >= 0 for value in (first, first if last is None else last)):
        raise FormatError(f"segment from {first!r:.20} to {last!r:.20}: write numbers of samples, from 0")
    rate, _, _ = audio_header(audio_path(path, row))
    return {"start": first / rate, "duration": None if last in (None, first) else (last - first) / rate}


def _with_placeholder(audio: str, file: Path, data_root: str | None, placeholder: str) -> str:
    """Path with the placeholder in place of the data root, if the file is in that folder."""
    if data_root is None or not file.resolve().is_relative_to(Path(data_root).resolve()):
        return audio
    relative = file.resolve().relative_to(Path(data_root).resolve()).as_posix()
    return f"{placeholder}/{relative}"


def _map_text(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {name: _map_text(part, function) for name, part in value.items()}
    return [_map_text(part, function) for part in value] if isinstance(value, list) else value


def _json_entries(path: Path, data_root: str | None) -> Iterator[tuple[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise FormatError(f"{path}: expected an object of entries by id; check the format")

    def fill(match: re.Match) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        return _filled(match[0], data_root if match[1] else None)

    for key, entry in content.items():
        try:
            filled = _map_text(entry, lambda text: _JSON_PLACEHOLDER.sub(fill, text))
            yield key, {"id": key, **filled} if isinstance(filled, dict) else filled
        except FormatError as error:
            yield key, error


def _filled(placeholder: str, data_root: str | None) -> str:
    if data_root is None:
        raise FormatError(f"has the placeholder {placeholder}; give its value with --data_root")
    return data_root


def _csv_entries(path: Path, data_root: str | None) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            if "ID" not in (reader.fieldnames or ()):
                raise FormatError(f"{path}: no column ID; check the format")
            for cells in reader:
                try:
                    yield cells["ID"], _values(cells, data_root)
                except FormatError as error:
                    yield cells["ID"], error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(
            f"{path}: not readable as CSV in UTF-8 ({error}); check the path, or correct the file"
        ) from error


def _values(cells: dict[str | None, Any], data_root: str | None) -> dict[str, Any]:
    """Entry of a line; empty cells of further columns are missing values."""
    if None in cells or None in cells.values():
        raise FormatError("has more or fewer cells than the header; quote cells that contain commas")
    cells = {
        name: _CSV_PLACEHOLDER.sub(lambda match: _filled(match[0], data_root), cell) for name, cell in cells.items()
    }
    entry: dict[str, Any] = {"id": cells.pop("ID")}
    entry |= {name: cell if name in _TEXT else _value(cell) for name, cell in cells.items() if cell or name in _TEXT}
    if "wav" in entry and isinstance(entry.get("start"), int) and isinstance(entry.get("stop"), int):
        entry["wav"] = {"file": entry["wav"], "start": entry.pop("start"), "stop": entry.pop("stop")}
    return entry


def _value(cell: str) -> Any:
    """Value of a cell that `_cell` would write in exactly this form; otherwise the text, such as 007 or 1e5."""
    try:
        value = parse_json(cell.encode())
        return value if to_json(value) == cell else cell
    except FormatError:
        return cell


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value if name in _TEXT or (value and _value(value) == value) else json.dumps(value, ensure_ascii=False)
    return to_json(value)


def _write_csv(entries: Iterable[tuple[str, dict[str, str]]], path: Path) -> None:
    lines = [cells for _, cells in entries]  # all, because the header names every column
    columns = list(dict.fromkeys(name for cells in lines for name in cells))
    with text_file(path) as file:
        # All cells are quoted: SpeechBrain skips spaces before a cell that is not.
        writer = csv.DictWriter(file, columns or ["ID"], restval="", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
