"""Hugging Face datasets: a folder of Parquet files or of save_to_disk, with an audio column of bytes and/or paths."""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from audiolm_lite.data.manifest import audio_path
from data_prep.formats import (
    FormatError,
    Report,
    Row,
    atomic_folder,
    items_of,
    parse_json,
    rows_of,
    to_json,
    to_ours,
    whole_clip,
)

NAMES = {
    "target": ("target", "text", "sentence", "transcription", "transcript", "answer", "caption"),
    "instruction": ("instruction", "question", "prompt"),
    "speaker": ("speaker", "speaker_id"),
}
# Rows read or written at once: clips of seconds, so tens of MB.
_ROWS_AT_ONCE = 64
# Key of the Parquet file's metadata that lists the columns holding JSON, whose values Arrow has no one type for.
_JSON_COLUMNS = b"audiolm_lite.json_columns"


def read(
    path: Path,
    report: Report,
    defaults: Mapping[str, str],
    fields: Mapping[str, tuple[str, ...]] | None = None,
    audio_folder: Path | None = None,
) -> Iterator[Row]:
    """Yield the rows of all splits; no code of the dataset is run.

    Parameters
    ----------
    path : Path
        Folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`, or one with .parquet files in any depth, whose
        names begin with their split (train-00000-of-00002.parquet) or lie in a folder that is named after it.
    report : Report
    defaults, fields : mapping
        As for the other formats.
    audio_folder : Path, optional
        Where audio bytes are written out, each content once, named by its hash; `path`/audio without it.
    """
    names = {**NAMES, "audio": ("audio", "file", "path"), **(fields or {})}
    audio_folder = audio_folder or path / "audio"

    def to_row(item: Row) -> Row:
        row = to_ours(item, names, report)
        row["audio"] = _audio(row.get("audio"), path, audio_folder)
        return row

    return rows_of(path, _items(path), to_row, report, defaults, unit="row")


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write data/<split>-00000-of-00001.parquet a split, as `datasets.load_dataset` takes it, the audio's bytes inside.

    Each row carries its clip, so several questions about one clip store it several times.
    """

    def to_item(row: Row) -> Row:
        if not re.fullmatch(r"\w+(\.\w+)*", row["split"]):
            raise FormatError(f"split {row['split']!r}: letters, digits, dots and underscores alone; rename it")
        file = audio_path(path, row)
        item = whole_clip(row, file)
        if not file.is_file():
            raise FormatError(f"{file}: no such file; correct the path and the folder it is relative to")
        return {**item, "audio": str(file)}

    splits: dict[str, list[Row]] = defaultdict(list)
    for item in items_of(rows, to_item, report):
        splits[item.pop("split")].append(item)
    with atomic_folder(path) as folder:
        (folder / "data").mkdir()
        for split, items in splits.items():
            _write_split(folder / f"data/{split}-00000-of-00001.parquet", items)


def _items(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of all files as plain values, numbered through; null columns are left out."""
    number = 0
    for file, split in _files(path):
        try:
            for batch, as_json in _batches(file):
                for item in batch.to_pylist():
                    number += 1
                    item = {name: value for name, value in item.items() if value is not None}
                    item |= {name: parse_json(item[name].encode()) for name in as_json if name in item}
                    yield number, {"split": split, **item} if split else item
        except (pa.ArrowException, OSError) as error:
            raise FormatError(f"{file}: not readable after row {number} ({error}); fetch it again") from error


def _files(path: Path) -> list[tuple[Path, str]]:
    """Data files with their splits (empty where nothing names one), in order."""
    files = sorted(path.rglob("*.parquet"))
    for state in sorted(path.rglob("state.json")):  # of save_to_disk; dataset_dict.json above it is not needed
        files += [state.parent / entry["filename"] for entry in json.loads(state.read_bytes())["_data_files"]]
    if not files:
        raise FormatError(f"{path}: no .parquet file and no state.json of save_to_disk in it; is it another folder?")
    found = []
    for file in files:
        named = re.match(r"(\w+(?:\.\w+)*)-\d+-of-\d+", file.name)
        # save_to_disk names its files data-...: their split is the folder, if there is one.
        inside = file.parent.name if file.parent not in (path, path / "data") else ""
        split = named[1] if named and named[1] != "data" else inside
        found.append((file, split))
    return found


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
    """Path of a row's audio, relative to the source; bytes are written out first."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        data, name = value["bytes"], value.get("path") or ""
        file = folder / f"{hashlib.sha256(data).hexdigest()[:32]}{_suffix(name, data)}"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(file.name + ".tmp")
            unfinished.write_bytes(data)
            os.replace(unfinished, file)
        return os.path.relpath(file.resolve(), path.resolve())
    value = value.get("path") if isinstance(value, dict) else value
    if not isinstance(value, str) or not value:
        raise FormatError(
            "has no audio column of bytes or of a path; name it with --field audio=COLUMN, "
            "or cast it with dataset.cast_column(COLUMN, datasets.Audio(decode=False)) before save_to_disk"
        )
    return value


def _suffix(name: str, data: bytes) -> str:
    """Ending of the original name, or that of the format the bytes are in."""
    if ending := re.search(r"\.\w{1,5}$", name):
        return ending[0].lower()
    try:
        return f".{soundfile.info(BytesIO(data)).format.lower()}"
    except soundfile.LibsndfileError as error:
        raise FormatError(f"its audio bytes are in no known format ({error}); make them again") from error


def _write_split(file: Path, items: list[Row]) -> None:
    columns = list(dict.fromkeys(name for item in items for name in item if name != "audio"))
    types: dict[str, pa.DataType] = {}
    for name in columns:
        kind = _type([item.get(name) for item in items], [name in item for item in items])
        if kind is None:
            items = [{**item, name: to_json(item[name])} if name in item else item for item in items]
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
        for first in range(0, len(items), _ROWS_AT_ONCE):
            batch = [
                {**item, "audio": {"bytes": Path(item["audio"]).read_bytes(), "path": Path(item["audio"]).name}}
                for item in items[first : first + _ROWS_AT_ONCE]
            ]
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _type(values: list[Any], given: list[bool]) -> pa.DataType | None:
    """Plain Arrow type that holds all values just as they are; None where there is none."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):
        return None
    plain = (pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.string()))
    # A null says that the row lacks the field, so a value of None needs JSON.
    unchanged = array.to_pylist() == values and [value is not None for value in values] == given
    return array.type if array.type in plain and unchanged else None


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}
