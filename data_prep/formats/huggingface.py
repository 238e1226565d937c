"""Hugging Face datasets: a folder of Parquet files or of save_to_disk, whose audio column has bytes, paths or both."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from audiolm_lite.audio.reading import TOLERANCE, audio_duration
from audiolm_lite.data.manifest import audio_path
from audiolm_lite.storage.atomic import write_bytes
from audiolm_lite.storage.paths import relative_path
from data_prep.class_labels import class_names, name_of_class
from data_prep.delimited import Table
from data_prep.formats import (
    FormatError,
    Report,
    Row,
    checked_rows,
    json_lines,
    new_folder,
    parse_json,
    rename_to_manifest,
    target_entries,
    to_json,
)

NAMES = {
    "target": ("target", "text", "sentence", "transcription", "transcript", "answer", "caption"),
    "instruction": ("instruction", "question", "prompt"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    # Of two, that of the text to learn.
    "language": ("language", "target_lang", "tgt_lang", "lang", "locale", "lang_id"),
}
# Fields of text that published datasets have as numbers.
_TEXT = ("id", "speaker")
_CODE = re.compile(r"[a-z]{2,3}([_-]\w+)*", re.IGNORECASE)
_NO_NAME = 'field "file_name": missing; write the path of the file'
# Rows read or written at once: some tens of MB for clips of seconds.
_ROWS_AT_ONCE = 64
# Key in the Parquet file's metadata: a list of the columns whose values are JSON, because no Arrow type fits them all.
_JSON_COLUMNS = b"audiolm_lite.json_columns"


def read(
    path: Path,
    report: Report,
    defaults: Mapping[str, str],
    fields: Mapping[str, tuple[str, ...]] | None = None,
    audio_folder: Path | None = None,
) -> Iterator[Row]:
    """Yield the rows of all splits; no code of the dataset is executed.

    Parameters
    ----------
    path : Path
        Folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`, a folder with .parquet files at any depth, or an
        AudioFolder, in which metadata.csv or metadata.jsonl names the files.
        Their names begin with the split (train-00000-of-00002.parquet), or the name of their folder is the split.
    report : Report
        Updated.
    defaults, fields : mapping
        As for the other formats.
    audio_folder : Path, optional
        Folder in which audio bytes are stored, equal bytes once, named by their hash; by default `path`/audio.

    Examples
    --------
    >>> import pyarrow.csv
    >>> folder = getfixture("tmp_path")
    >>> table = pyarrow.csv.read_csv(BytesIO(b"audio,sentence\\n1.wav,hello\\n"))
    >>> pq.write_table(table, folder / "train-00000-of-00001.parquet")
    >>> rows = read(folder, Report(), {"dataset": "d", "task": "asr", "instruction": "Transcribe."})
    >>> [(row["id"], row["audio"], row["split"], row["target"]) for row in rows]
    [('d-1', '1.wav', 'train', 'hello')]
    """
    names = {**NAMES, "audio": ("audio", "file", "path", "file_name"), **(fields or {})}
    audio_folder = audio_folder or path / "audio"
    numbered: Counter[int] = Counter()  # number as id -> its rows: of a sentence, in some datasets, which has several

    def to_row(entry: Row) -> Row:
        row = rename_to_manifest(entry, names, report)
        row["audio"] = _audio(row.get("audio"), path, audio_folder)
        for name in _TEXT:
            if isinstance(row.get(name), int) and not isinstance(row[name], bool):
                row[name] = str(row[name])
        if isinstance(row.get("lang_id"), str) and not _CODE.fullmatch(str(row.get("language"))):
            row["language"] = row.pop("lang_id")  # FLEURS: "ko_kr" for "Korean"
        if isinstance(entry.get("id"), int) and row.get("id") == str(entry["id"]):
            numbered[entry["id"]] += 1
            if numbered[entry["id"]] > 1:
                row["id"] += f"-{numbered[entry['id']]}"
        return row

    return checked_rows(path, _entries(path), to_row, report, defaults, unit="row")


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write data/<split>-00000-of-00001.parquet for each split, with the audio's bytes, for `datasets.load_dataset`.

    Every row contains its clip, so several questions about one clip store it several times.
    """

    def to_entry(row: Row) -> Row:
        if not re.fullmatch(r"\w+(\.\w+)*", row["split"]):
            raise FormatError(f"split {row['split']!r}: use letters, digits, dots and underscores only; rename it")
        file = audio_path(path, row)
        entry = _without_segment(row, file)
        if not file.is_file():
            raise FormatError(f"{file}: no such file; correct the path and the folder it is relative to")
        return {**entry, "audio": str(file)}

    splits: dict[str, list[Row]] = defaultdict(list)
    for entry in target_entries(rows, to_entry, report):
        splits[entry.pop("split")].append(entry)
    with new_folder(path) as folder:
        (folder / "data").mkdir()
        for split, entries in splits.items():
            _write_split(folder / f"data/{split}-00000-of-00001.parquet", entries)


def _without_segment(row: Row, audio: Path) -> Row:
    """Row without start, and without a null duration; raises FormatError if it is a segment of its file."""
    start, duration = row["start"], row["duration"]
    if start > 0 or (duration is not None and abs(duration - audio_duration(audio)) > TOLERANCE):
        end = "the end" if duration is None else f"{start + duration:g} s"
        raise FormatError(
            f"{row['audio']} from {start:g} s to {end} is part of its file, and this format stores whole files only; "
            "cut the segment into a file of its own"
        )
    dropped = {"start"} if duration is not None else {"start", "duration"}
    return {name: value for name, value in row.items() if name not in dropped}


def _entries(path: Path) -> Iterator[tuple[int, Row | FormatError]]:
    """Yield number and plain values of the rows of all files, classes by name; null columns are left out."""
    number = 0
    lists = sorted([*path.rglob("metadata.csv"), *path.rglob("metadata.jsonl")])
    if lists and not any(path.rglob("*.parquet")):
        yield from _listed_entries(path, lists)
        return
    for file, split in _files(path):
        try:
            for batch, as_json in _batches(file):
                classes = class_names(path, file, batch.schema)
                for entry in batch.to_pylist():
                    number += 1
                    try:
                        entry |= {name: name_of_class(name, entry[name], classes[name]) for name in classes}
                    except FormatError as error:
                        yield number, error
                        continue
                    entry = {name: value for name, value in entry.items() if value is not None}
                    entry |= {name: parse_json(entry[name].encode()) for name in as_json if name in entry}
                    yield number, {"split": split, **entry} if split else entry
        except (pa.ArrowException, OSError) as error:
            raise FormatError(f"{file}: not readable after row {number} ({error}); download it again") from error


def _listed_entries(path: Path, lists: list[Path]) -> Iterator[tuple[int, Row | FormatError]]:
    """Yield number and values of the rows of an AudioFolder, whose lists name files in their own folders."""
    number = 0
    for file in lists:
        for line, entry in Table(file).rows() if file.suffix == ".csv" else json_lines(file):
            number += 1
            if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
                fault = entry if isinstance(entry, FormatError) else _NO_NAME
                yield number, FormatError(f"{file}, line {line}: {fault}")
                continue
            values = {name: value for name, value in entry.items() if value is not None and value != ""}
            if folder := _folder_of_split(file, path):
                values = {"split": folder, **values}
            audio = relative_path(file.parent.resolve() / entry["file_name"], path.resolve())
            yield number, {**values, "file_name": audio}


def _folder_of_split(file: Path, path: Path) -> str:
    """Name of a file's folder, which is a split; empty for files of the dataset's own folder."""
    return file.parent.name if file.parent not in (path, path / "data") else ""


def _files(path: Path) -> list[tuple[Path, str]]:
    """Data files in order, with their splits (empty if neither file nor folder names one)."""
    files = sorted(path.rglob("*.parquet"))
    for state in sorted(path.rglob("state.json")):  # of save_to_disk; dataset_dict.json is not needed
        files += [state.parent / entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    if not files:
        raise FormatError(
            f"{path}: contains no .parquet files, state.json of save_to_disk, metadata.csv or metadata.jsonl; check "
            "the path"
        )
    splits = []
    for file in files:
        match = re.match(r"(\w+(?:\.\w+)*)-\d+-of-\d+", file.name)
        # save_to_disk names its files data-...: their split is the name of their folder, if there is one.
        splits.append((file, match[1] if match and match[1] != "data" else _folder_of_split(file, path)))
    return splits


def _batches(file: Path) -> Iterator[tuple[pa.RecordBatch, list[str]]]:
    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            as_json = json.loads(metadata.get(_JSON_COLUMNS, b"[]"))
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE):
                yield batch, as_json
        return
    with pa.memory_map(str(file)) as source:
        for batch in pa.ipc.open_stream(source):
            yield batch, []


def _audio(value: Any, path: Path, folder: Path) -> str:
    """Path of a row's audio, relative to the source; audio bytes are first written to a file."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        data, name = value["bytes"], value.get("path") or ""
        file = folder / f"{hashlib.sha256(data).hexdigest()[:32]}{_suffix(name, data)}"
        if not file.exists():
            write_bytes(file, data)
        return relative_path(file.resolve(), path.resolve())
    value = value.get("path") if isinstance(value, dict) else value
    if not isinstance(value, str) or not value:
        raise FormatError(
            "has no audio column with bytes or a path; name it with --field audio=COLUMN, "
            "or cast it with dataset.cast_column(COLUMN, datasets.Audio(decode=False)) before save_to_disk"
        )
    return value


def _suffix(name: str, data: bytes) -> str:
    """Extension of the original name, or that of the bytes' format."""
    if ending := re.search(r"\.\w{1,5}$", name):
        return ending[0].lower()
    try:
        return f".{soundfile.info(BytesIO(data)).format.lower()}"
    except soundfile.LibsndfileError as error:
        raise FormatError(f"the format of its audio bytes is unknown ({error}); write them again") from error


def _write_split(file: Path, entries: list[Row]) -> None:
    columns = list(dict.fromkeys(name for entry in entries for name in entry if name != "audio"))
    types: dict[str, pa.DataType] = {}
    for name in columns:
        kind = _type([entry.get(name) for entry in entries], [name in entry for entry in entries])
        if kind is None:
            entries = [{**entry, name: to_json(entry[name])} if name in entry else entry for entry in entries]
        else:
            types[name] = kind
    as_json = [name for name in columns if name not in types]
    audio = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"audio": audio, **{name: types.get(name, pa.string()) for name in columns}})
    features = {"audio": {"_type": "Audio"}, **{name: _feature(schema.field(name).type) for name in columns}}
    schema = schema.with_metadata(
        {b"huggingface": json.dumps({"info": {"features": features}}), _JSON_COLUMNS: json.dumps(as_json)}
    )
    with pq.ParquetWriter(file, schema) as writer:
        for first in range(0, len(entries), _ROWS_AT_ONCE):
            batch = [
                {**entry, "audio": {"bytes": Path(entry["audio"]).read_bytes(), "path": Path(entry["audio"]).name}}
                for entry in entries[first : first + _ROWS_AT_ONCE]
            ]
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _type(values: list[Any], given: list[bool]) -> pa.DataType | None:
    """Plain Arrow type that stores all values unchanged; None if there is none."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):
        return None
    plain = (pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.string()))
    # A null means that the row lacks the field, so a value of None is stored as JSON.
    unchanged = array.to_pylist() == values and [value is not None for value in values] == given
    return array.type if array.type in plain and unchanged else None


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}
