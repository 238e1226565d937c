"""A memory-mapped table of a manifest's rows, so that millions of rows are open at once and shared by processes.

The table of `train.jsonl` is `.train.jsonl.arrow` in the same folder. This Arrow file is written, and all rows are
checked, when the manifest is first opened, and again when it has changed. Rows themselves are read from the manifest.
The table contains for each row the offset (`begin`), `size` and `crc32` of its line, the fields `start`, `duration`,
`task`, `split` and `audio`, and whether it has an instruction (`questioned`) and clips after the first (`several`).
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from audiolm_lite.data.manifest import iterate_lines, open_manifest
from audiolm_lite.data.row_checks import ManifestError, with_defaults
from audiolm_lite.storage.cache import derived_file, derived_paths
from audiolm_lite.storage.mapped_arrays import map_file, read_at

log = logging.getLogger(__name__)

FORMAT = 3
_SCHEMA = pa.schema(
    [
        pa.field("begin", pa.uint64(), nullable=False),
        pa.field("size", pa.uint32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("start", pa.float64(), nullable=False),
        pa.field("duration", pa.float64()),
        pa.field("channel", pa.int16()),
        pa.field("task", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("audio", pa.string(), nullable=False),
        pa.field("questioned", pa.bool_(), nullable=False),
        pa.field("several", pa.bool_(), nullable=False),
    ]
)
_BATCH_ROWS = 1 << 16  # rows in each record batch of the file except the last
_END_BYTES = 1 << 16  # bytes at each end of the manifest that are part of its stamp


class ManifestTable(Sequence[dict[str, Any]]):
    """Rows of a manifest, read one by one at the byte offsets in its memory-mapped table.

    The table is valid while size, modification time (ns) and the first and last 64 KiB of the manifest are unchanged.
    Replacing a file changes size or time; the two ends detect a copy of another version whose time was set back. An
    edit that keeps all of these is detected when a changed row is read, by the checksum of its line.

    Parameters
    ----------
    path : str or Path
        The manifest; its rows may lack an instruction.

    Attributes
    ----------
    path : Path
        The manifest.
    file : Path
        The table: next to the manifest or, if that folder is not writable, in the user's cache folder.
    content : str
        Hash of the manifest's bytes.

    Raises
    ------
    ManifestError
        The manifest cannot be read or breaks the schema, or it has been changed since it was opened.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._manifest = open_manifest(self.path)
        stamp = _stamp(self._manifest)
        self.file = derived_file(
            self.path,
            ".arrow",
            lambda file: _metadata(file).get("stamp") == stamp,
            lambda file: _write(self.path, stamp, file),
        )
        self.content = _metadata(self.file)["content"]
        self._map()

    def _map(self) -> None:
        self._table = self.file.open("rb")
        reader = self._reader()
        source = json.loads(reader.schema.metadata[b"manifest"])
        if source["content"] != self.content or source["stamp"] != _stamp(self._manifest):
            raise self._changed()
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._batch_rows = len(batches[0]) if batches else 1
        self._rows = sum(map(len, batches))
        # Rows are looked up one by one, which is faster in memory views than in arrays.
        self._lines = [tuple(_values(batch[name]).data for name in _SCHEMA.names[:3]) for batch in batches]

    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        """Map the file again; it is the one opened at first, even if another file has replaced it."""
        return pa.ipc.open_file(pa.py_buffer(map_file(self._table)))

    def _changed(self) -> ManifestError:
        return ManifestError(f"{self.path}: has changed since it was opened; start again")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "file": self.file, "content": self.content}  # each process opens the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.file, self.content = state["path"], state["file"], state["content"]
        self._manifest = open_manifest(self.path)
        self._map()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices
        """Return a row as `read_manifest` does."""
        if not -self._rows <= index < self._rows:
            raise IndexError(f"{self.path}: row {index} of {self._rows}")
        batch, position = divmod(index % self._rows, self._batch_rows)
        offsets, sizes, checksums = self._lines[batch]
        # Read, not mapped: mapped pages would count as memory of this process, and truncating a mapped file kills it.
        line = read_at(self._manifest, sizes[position], offsets[position])
        if zlib.crc32(line) != checksums[position]:
            raise self._changed()
        return with_defaults(json.loads(line.decode()))

    def column(self, name: str) -> np.ndarray:
        """Return a numeric or boolean column [N] of all rows, as a copy."""
        values = [_values(batch[name]) for _, batch in self._batches()]
        return np.concatenate([_values(pa.array([], _SCHEMA.field(name).type)), *values])

    def clips(self, numbers: np.ndarray) -> Iterator[tuple[str, float, float | None, int | None]]:
        """Yield audio, start, duration and channel of the rows with these numbers [N], which must be ascending."""
        for first, batch in self._batches():
            in_batch = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, first + len(batch))]
            positions = pa.array(in_batch - first)
            fields = ("audio", "start", "duration", "channel")
            yield from zip(*(batch[name].take(positions).to_pylist() for name in fields))

    def select(self, tasks: Sequence[str] | None = None, split: str | None = None) -> np.ndarray:
        """Return the numbers [N] int32 of the rows with one of these tasks and this split; None selects all."""
        given = {"task": tasks, "split": None if split is None else [split]}
        conditions = {name: values for name, values in given.items() if values is not None}
        if not conditions:
            return np.arange(len(self), dtype=np.int32)
        numbers = [np.empty(0, np.int32)]
        for first, batch in self._batches():
            keep = np.ones(len(batch), dtype=bool)
            for name, values in conditions.items():
                column = batch[name].dictionary_encode()
                allowed = np.array([value in values for value in column.dictionary.to_pylist()])
                keep &= allowed[_values(column.indices)]
            numbers.append((np.flatnonzero(keep) + first).astype(np.int32))
        return np.concatenate(numbers)

    def tasks_and_splits(self) -> set[tuple[str, str]]:
        """Return all pairs (task, split) that occur."""
        pairs = (zip(batch["task"].to_pylist(), batch["split"].to_pylist()) for _, batch in self._batches())
        return set().union(*pairs)

    def _batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield each record batch and the number of its first row."""
        first = 0
        for number in range(len(self._lines)):
            # A mapping that ends with the batch: in a permanent one, the pages would stay resident.
            batch = self._reader().get_batch(number)
            yield first, batch
            first += len(batch)


def content_hash(path: str | Path) -> str:
    """Return the hash of a manifest's bytes: that in its table if the table is valid, otherwise it is computed.

    Raises
    ------
    ManifestError
        The manifest cannot be read.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "train.jsonl"
    >>> _ = path.write_text('{"id": "a"}')
    >>> content_hash(path)
    '4217ff594f610f38d0ad116bf576e4c5'
    """
    path = Path(path)
    with open_manifest(path) as manifest:
        stamp = _stamp(manifest)
        for table in derived_paths(path, ".arrow"):
            if (metadata := _metadata(table)).get("stamp") == stamp:
                return metadata["content"]
        return _hash(manifest)


def _hash(manifest: BinaryIO) -> str:
    content = hashlib.blake2b(digest_size=16)
    while block := manifest.read(1 << 20):
        content.update(block)
    return content.hexdigest()


def _values(column: pa.Array) -> np.ndarray:
    """Numbers or booleans of an array, as its `to_numpy` returns them, but without importing pandas (35 MB)."""
    data = column.buffers()[1] or b""
    if pa.types.is_boolean(column.type):
        return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: len(column)].astype(bool)
    return np.frombuffer(data, np.dtype(str(column.type)), len(column))


def _stamp(manifest: BinaryIO) -> dict[str, Any]:
    """Size, modification time and hash of both ends of a manifest."""
    status = os.fstat(manifest.fileno())
    ends = read_at(manifest, _END_BYTES, 0)
    ends += read_at(manifest, _END_BYTES, max(0, status.st_size - _END_BYTES))
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ends": hashlib.blake2b(ends, digest_size=16).hexdigest(),
    }


def _metadata(file: Path) -> dict[str, Any]:
    """Stamp and content hash of the manifest that a table was made from; empty if the table is missing or invalid."""
    try:
        with pa.memory_map(str(file)) as source:
            schema = pa.ipc.open_file(source).schema
        metadata = json.loads(schema.metadata[b"manifest"])
        return metadata if metadata["format"] == FORMAT and schema.equals(_SCHEMA) else {}
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return {}


def _write(path: Path, stamp: dict[str, Any], file: Path) -> None:
    """Check a manifest and write its table to `file`."""
    log.info("%s: checking all rows and writing the table of the manifest, once", path)
    with open_manifest(path) as source:
        metadata = {"format": FORMAT, "stamp": stamp, "content": _hash(source)}
    schema = _SCHEMA.with_metadata({"manifest": json.dumps(metadata)})
    entries = (_entry(*line) for line in iterate_lines(path, instruction_required=False))
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while batch := list(islice(entries, _BATCH_ROWS)):
            columns = [pa.array(values, field.type) for values, field in zip(zip(*batch), schema)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    with open_manifest(path) as source:
        if _stamp(source) != stamp:
            raise ManifestError(f"{path}: changed while it was read; start again when it is complete")


def _entry(row: dict[str, Any], offset: int, line: bytes) -> tuple[Any, ...]:
    """Values of the table's columns for a row."""
    fields = row["start"], row["duration"], row.get("channel"), row["task"], row["split"], row["audio"]
    return offset, len(line), zlib.crc32(line), *fields, row["instruction"] is not None, bool(row.get("further_audio"))
