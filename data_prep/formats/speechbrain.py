"""SpeechBrain: a JSON object {id: {wav, duration, wrd, ...}}, or a CSV file with a column ID (by the file's ending)."""

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
    atomic_file,
    items_of,
    parse_json,
    read_json,
    rows_of,
    to_json,
    to_ours,
    to_theirs,
)

NAMES = {
    "audio": ("wav", "path", "file_name", "audio_path"),
    "target": ("wrd", "words", "text", "transcript", "transcription"),
    "speaker": ("spk_id", "speaker_id"),
}
# SpeechBrain fills in `{data_root}` in JSON and `$data_root` in CSV files.
_JSON_PLACE = re.compile(r"\{\{|\}\}|\{(\w*)\}|[{}]")
_CSV_PLACE = re.compile(r"\$([\w.]+)")
# Columns of text; cells of all others are text too, unless they are JSON just as this module writes it.
_TEXT = {"ID", "wav", "wrd", "spk_id", "instruction", "task", "dataset", "split", "language"}


def read(
    path: Path,
    report: Report,
    defaults: Mapping[str, str],
    fields: Mapping[str, tuple[str, ...]] | None = None,
    data_root: str | None = None,
) -> Iterator[Row]:
    """Yield rows; a segment is {"file", "start", "stop"} in JSON and columns start, stop in CSV, in samples.

    Parameters
    ----------
    path : Path
        .csv or .json.
    report : Report
    defaults, fields : mapping
        As for the other formats.
    data_root : str, optional
        What stands for the placeholder, whatever its name ({data_root}, $data_folder); rows with one are set aside
        without it.
    """
    names = {**NAMES, **(fields or {})}

    def to_row(item: Any) -> Row:
        row = to_ours(item, names, report)
        audio = row.get("audio")
        if isinstance(audio, dict):
            if set(audio) - {"file", "start", "stop"} or not isinstance(audio.get("file"), str):
                raise FormatError(f'wav is {audio!r:.80}; write a path, or {{"file", "start", "stop"}}')
            first, last = audio.get("start", 0), audio.get("stop")
            row["audio"] = audio["file"]
            row |= _seconds(path, row, first, last)
        return row

    entries = _csv_entries(path, data_root) if path.suffix == ".csv" else _json_entries(path, data_root)
    return rows_of(path, entries, to_row, report, defaults, unit="entry")


def write(rows: Iterable[Row], path: Path, report: Report, data_root: str | None = None) -> None:
    """Write .csv or .json. SpeechBrain sorts by duration and counts in samples, so each file's header is read.

    `data_root`: audio below this folder is written with the placeholder in its place.
    """
    as_csv = path.suffix == ".csv"

    def to_item(row: Row) -> tuple[str, dict[str, Any]]:
        file = audio_path(path, row)
        rate, samples, _ = audio_header(file)
        first = round(row["start"] * rate)
        last = samples if row["duration"] is None else round((row["start"] + row["duration"]) * rate)
        item = to_theirs({name: row[name] for name in row if name not in ("id", "start")}, NAMES, report)
        item["duration"] = (last - first) / rate if row["duration"] is None else row["duration"]
        if "references" in item and item["references"] == [row["target"]]:
            del item["references"]
        whole = first == 0 and abs(last - samples) <= TOLERANCE * rate
        if as_csv:
            for name in {"ID", "stop"} & item.keys():  # columns that mean something else here
                report.lost[name] += 1
                del item[name]
            cells = {"ID": row["id"], **{name: _cell(name, value) for name, value in item.items()}}
            if not whole:
                cells |= {"start": str(first), "stop": str(last)}
            for name, value in cells.items():
                if place := _CSV_PLACE.search(value):
                    raise FormatError(f'field "{name}": SpeechBrain would take {place[0]} for a placeholder; reword it')
            cells["wav"] = _below(cells["wav"], file, data_root, "$data_root")
            return row["id"], cells
        item = _map_text(item, lambda text: text.replace("{", "{{").replace("}", "}}"))
        item["wav"] = _below(item["wav"], file, data_root, "{data_root}")
        if not whole:
            item["wav"] = {"file": item["wav"], "start": first, "stop": last}
        return row["id"], item

    items = items_of(rows, to_item, report)
    if as_csv:
        _write_csv(items, path)
        return
    with atomic_file(path) as file:
        file.write("{")
        for number, (key, item) in enumerate(items):
            file.write(f"{',' if number else ''}\n{to_json(key)}: {to_json(item)}")
        file.write("\n}\n")


def _seconds(path: Path, row: Row, first: Any, last: Any) -> Row:
    """Start and duration from samples; a stop that is missing or equals the start is the file's end."""
    if not all(isinstance(value, int) and value >= 0 for value in (first, first if last is None else last)):
        raise FormatError(f"segment from {first!r:.20} to {last!r:.20}: write samples as whole numbers")
    rate, _, _ = audio_header(audio_path(path, row))
    return {"start": first / rate, "duration": None if last in (None, first) else (last - first) / rate}


def _below(audio: str, file: Path, data_root: str | None, placeholder: str) -> str:
    """Path with the placeholder in place of the data root, where it lies below that."""
    if data_root is None or not file.resolve().is_relative_to(Path(data_root).resolve()):
        return audio
    below = file.resolve().relative_to(Path(data_root).resolve()).as_posix()
    return f"{placeholder}/{below}"


def _map_text(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, dict):
        return {name: _map_text(item, function) for name, item in value.items()}
    return [_map_text(item, function) for item in value] if isinstance(value, list) else value


def _json_entries(path: Path, data_root: str | None) -> Iterator[tuple[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise FormatError(f"{path}: expected an object of entries by id; is it of another format?")

    def fill(match: re.Match) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        return _filled(match[0], data_root if match[1] else None)

    for key, item in content.items():
        try:
            filled = _map_text(item, lambda text: _JSON_PLACE.sub(fill, text))
            yield key, {"id": key, **filled} if isinstance(filled, dict) else filled
        except FormatError as error:
            yield key, error


def _filled(place: str, data_root: str | None) -> str:
    if data_root is None:
        raise FormatError(f"has the placeholder {place}; say what it stands for with --data_root")
    return data_root


def _csv_entries(path: Path, data_root: str | None) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            if "ID" not in (reader.fieldnames or ()):
                raise FormatError(f"{path}: no column ID; is it of another format?")
            for cells in reader:
                try:
                    yield cells["ID"], _values(cells, data_root)
                except FormatError as error:
                    yield cells["ID"], error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: not readable as CSV in UTF-8 ({error}); correct the path or the file") from error


def _values(cells: dict[str | None, Any], data_root: str | None) -> dict[str, Any]:
    """Entry of a line; empty cells of further columns are no values."""
    if None in cells or None in cells.values():
        raise FormatError("has more or fewer cells than the header; quote cells that hold commas")
    cells = {name: _CSV_PLACE.sub(lambda match: _filled(match[0], data_root), cell) for name, cell in cells.items()}
    item: dict[str, Any] = {"id": cells.pop("ID")}
    item |= {name: cell if name in _TEXT else _value(cell) for name, cell in cells.items() if cell or name in _TEXT}
    if "wav" in item and isinstance(item.get("start"), int) and isinstance(item.get("stop"), int):
        item["wav"] = {"file": item["wav"], "start": item.pop("start"), "stop": item.pop("stop")}
    return item


def _value(cell: str) -> Any:
    """JSON where the cell is just as `_cell` writes it, text otherwise: 007 and 1e5 stay what they are."""
    try:
        value = parse_json(cell.encode())
        return value if to_json(value) == cell else cell
    except FormatError:
        return cell


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value if name in _TEXT or (value and _value(value) == value) else json.dumps(value, ensure_ascii=False)
    return to_json(value)


def _write_csv(items: Iterable[tuple[str, dict[str, str]]], path: Path) -> None:
    lines = [cells for _, cells in items]  # all, because the header names every column
    columns = list(dict.fromkeys(name for cells in lines for name in cells))
    with atomic_file(path) as file:
        # Every cell quoted: SpeechBrain skips the spaces before one that is not.
        writer = csv.DictWriter(file, columns or ["ID"], restval="", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
