"""Where each row of a manifest is, and what rows are chosen by: millions of rows open at once, shared by processes.

Beside `train.jsonl` lies `.train.jsonl.arrow`, an Arrow file that is made, and all rows checked, when the manifest is
first opened, and again when it has changed. It is memory-mapped; rows themselves are read from the manifest. A row has
there the `begin`, `size` and `crc32` of its line, `start`, `duration`, `task`, `split` and `audio` of the row, and
whether it has an instruction (`questioned`) and clips after the first (`several`).
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

from audiolm_lite.data.manifest import ManifestError, completed, iterate_lines, open_manifest
from audiolm_lite.storage.cache import derived_file
from audiolm_lite.storage.mapped_arrays import map_file

log = logging.getLogger(__name__)

FORMAT = 2
_SCHEMA = pa.schema(
    [
        pa.field("begin", pa.uint64(), nullable=False),
        pa.field("size", pa.uint32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("start", pa.float64(), nullable=False),
        pa.field("duration", pa.float64()),
        pa.field("task", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("audio", pa.string(), nullable=False),
        pa.field("questioned", pa.bool_(), nullable=False),
        pa.field("several", pa.bool_(), nullable=False),
    ]
)
_PORTION = 1 << 16  # rows in each batch of the file but the last
_END_BYTES = 1 << 16


class ManifestTable(Sequence):
    """Rows of a manifest, read one at a time by a table of their places that is memory-mapped.

    The table counts as the manifest's while size, modification time (ns) and the first and last 64 kB are those of
    the manifest it was made from. Whatever replaces a file changes size or time; the two ends catch a copy of another
    version whose time was set back. An edit that keeps all of these is noticed when one of its rows is read: each line
    has its checksum in the table.

    Parameters
    ----------
    path : str or Path
        The manifest. Rows may lack an instruction.

    Attributes
    ----------
    path : Path
        The manifest.
    file : Path
        The table: beside the manifest or, where that folder cannot be written, in the user's cache folder.
    content : str
        Hash of the manifest's bytes.

    Raises
    ------
    ManifestError
        As `iterate_manifest`, when the table is made; when a row is read and the manifest has been written to since.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._manifest = open_manifest(self.path)
        stamp = _stamp(self._manifest)
        self.file = derived_file(
            self.path,
            ".arrow",
            lambda file: _source(file).get("stamp") == stamp,
            lambda file: _write(self.path, stamp, file),
        )
        self.content = _source(self.file)["content"]
        self._map()

    def _map(self) -> None:
        self._table = self.file.open("rb")
        reader = self._reader()
        source = json.loads(reader.schema.metadata[b"manifest"])
        if source["content"] != self.content or source["stamp"] != _stamp(self._manifest):
            raise self._changed()
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._portion = len(batches[0]) if batches else 1
        self._rows = sum(map(len, batches))
        # Rows are looked up one by one, which is faster in these than in arrays.
        self._places = [tuple(memoryview(_values(batch[name])) for name in _SCHEMA.names[:3]) for batch in batches]

    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        """Map the file anew, which is the one opened at first even where another has taken its name."""
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

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row as `read_manifest` gives it."""
        if not -self._rows <= index < self._rows:
            raise IndexError(f"{self.path}: row {index} of {self._rows}")
        batch, place = divmod(index % self._rows, self._portion)
        begins, sizes, codes = self._places[batch]
        # Not mapped: it shall not count as this process's memory, and a file cut short while mapped ends a process.
        line = os.pread(self._manifest.fileno(), sizes[place], begins[place])
        if zlib.crc32(line) != codes[place]:
            raise self._changed()
        return completed(json.loads(line.decode()))

    def column(self, name: str) -> np.ndarray:
        """One field [N] of numbers or truth values of all rows, a copy."""
        parts = [_values(batch[name]) for _, batch in self._batches()]
        return np.concatenate([_values(pa.array([], _SCHEMA.field(name).type)), *parts])

    def clips(self, numbers: np.ndarray) -> Iterator[tuple[str, float, float | None]]:
        """Yield audio, start and duration of some rows, whose numbers [N] ascend."""
        for first, batch in self._batches():
            here = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, first + len(batch))]
            chosen = pa.array(here - first)
            yield from zip(*(batch[name].take(chosen).to_pylist() for name in ("audio", "start", "duration")))

    def select(self, tasks: Sequence[str] | None = None, split: str | None = None) -> np.ndarray:
        """Numbers [N] int32 of the rows with one of these tasks and this split; None takes all."""
        wanted = {"task": tasks, "split": None if split is None else [split]}
        wanted = {name: names for name, names in wanted.items() if names is not None}
        if not wanted:
            return np.arange(len(self), dtype=np.int32)
        found = [np.empty(0, np.int32)]
        for first, batch in self._batches():
            keep = np.ones(len(batch), dtype=bool)
            for name, names in wanted.items():
                kinds = batch[name].dictionary_encode()
                allowed = np.array([kind in names for kind in kinds.dictionary.to_pylist()])
                keep &= allowed[_values(kinds.indices)]
            found.append((np.flatnonzero(keep) + first).astype(np.int32))
        return np.concatenate(found)

    def tasks_and_splits(self) -> set[tuple[str, str]]:
        """All (task, split) that rows have."""
        pairs = (zip(batch["task"].to_pylist(), batch["split"].to_pylist()) for _, batch in self._batches())
        return set().union(*pairs)

    def _batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Number of the first row and rows of each batch."""
        first = 0
        for number in range(len(self._places)):
            # Its own mapping, which ends with the batch: the pages would stay resident in the one that lasts.
            batch = self._reader().get_batch(number)
            yield first, batch
            first += len(batch)


def _values(column: pa.Array) -> np.ndarray:
    """An array's numbers or truth values, as its `to_numpy` gives them, which imports pandas (35 MB) for that."""
    data = column.buffers()[1] or b""
    if pa.types.is_boolean(column.type):
        return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: len(column)].astype(bool)
    return np.frombuffer(data, np.dtype(str(column.type)), len(column))


def _stamp(manifest: BinaryIO) -> dict[str, Any]:
    status = os.fstat(manifest.fileno())
    ends = os.pread(manifest.fileno(), _END_BYTES, 0)
    ends += os.pread(manifest.fileno(), _END_BYTES, max(0, status.st_size - _END_BYTES))
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ends": hashlib.blake2b(ends, digest_size=16).hexdigest(),
    }


def _source(file: Path) -> dict[str, Any]:
    """What a table says of its manifest; nothing where there is no sound table of this format."""
    try:
        with pa.memory_map(str(file)) as source:
            schema = pa.ipc.open_file(source).schema
        found = json.loads(schema.metadata[b"manifest"])
        return found if found["format"] == FORMAT and schema.equals(_SCHEMA) else {}
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return {}


def _write(path: Path, stamp: dict[str, Any], file: Path) -> None:
    log.info("%s: making its table, once", path)
    content = hashlib.blake2b(digest_size=16)
    with open_manifest(path) as source:
        while block := source.read(1 << 20):
            content.update(block)
    about = {"format": FORMAT, "stamp": stamp, "content": content.hexdigest()}
    schema = _SCHEMA.with_metadata({"manifest": json.dumps(about)})
    facts = (_facts(*line) for line in iterate_lines(path, instruction_required=False))
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while portion := list(islice(facts, _PORTION)):
            columns = [pa.array(values, field.type) for values, field in zip(zip(*portion), schema)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    with open_manifest(path) as source:
        if _stamp(source) != stamp:
            raise ManifestError(f"{path}: changed while it was read; start again when it is finished")


def _facts(row: dict[str, Any], begin: int, line: bytes) -> tuple:
    """Values of the table's columns."""
    place = begin, len(line), zlib.crc32(line)
    clip = row["start"], row["duration"], row["task"], row["split"], row["audio"]
    return *place, *clip, row["instruction"] is not None, bool(row.get("further_audio"))
