"""Manifests as memory-mapped tables: millions of rows open at once, and all processes of a machine share them.

Beside `train.jsonl` lies `.train.jsonl.arrow`, an Arrow IPC file with the same rows, made and checked when the
manifest is first opened, and again when it has changed. Its schema's metadata says of which manifest it is.
"""

import errno
import hashlib
import json
import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from audiolm_lite.cache import cache_folder
from audiolm_lite.data.manifest import ManifestError, iterate_manifest, open_manifest

log = logging.getLogger(__name__)

FORMAT = 1
_TEXTS = ("id", "audio", "task", "instruction", "target", "dataset", "split", "language", "speaker")
# "references" is null where it is the target alone, "further" null or a JSON object with all other fields.
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXTS]
    + [("start", pa.float64()), ("duration", pa.float64())]
    + [("references", pa.list_(pa.string())), ("further", pa.string())]
)
_BATCH_ROWS, _BATCH_CHARACTERS = 1 << 16, 1 << 26  # the second keeps a column far below Arrow's 2 GB a batch
_END_BYTES = 1 << 16


class ManifestTable(Sequence):
    """Rows of a manifest, read one at a time from a table that is memory-mapped.

    The table counts as the manifest's while size, modification time (ns) and the first and last 64 kB are those of
    the manifest it was made from. Whatever writes to a file changes size or time; the two ends catch a copy of another
    version whose time was set back. An edit that keeps all of these would be missed: delete the table then.

    Parameters
    ----------
    path : str or Path
        The manifest. Rows may lack an instruction.

    Attributes
    ----------
    path : Path
        The manifest.
    file : Path
        The Arrow file: beside the manifest or, where that folder cannot be written, in the user's cache folder.
    content : str
        Hash of the manifest's bytes.

    Raises
    ------
    ManifestError
        As `iterate_manifest`, when the table is made.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        stamp = _stamp(self.path)
        self.file = made_once(
            self.path, ".arrow", lambda file: _source(file).get("stamp") == stamp, lambda file: _write(self.path, file)
        )
        self.content = _source(self.file)["content"]
        self._map()

    def _open(self) -> pa.ipc.RecordBatchFileReader:
        """Map the file anew; another process may have replaced it by the table of a changed manifest."""
        reader = pa.ipc.open_file(pa.memory_map(str(self.file)))
        if json.loads(reader.schema.metadata[b"manifest"])["content"] != self.content:
            raise ManifestError(f"{self.path}: has changed since it was opened; start again")
        return reader

    def _map(self) -> None:
        reader = self._open()
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._columns = [dict(zip(_SCHEMA.names, batch.columns)) for batch in batches]
        self._ends = list(accumulate(batch.num_rows for batch in batches))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "file": self.file, "content": self.content}  # each process maps the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.file, self.content = state["path"], state["file"], state["content"]
        self._map()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row as `read_manifest` gives it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: row {index} of {len(self)}")
        index %= len(self)
        batch = bisect_right(self._ends, index)
        place = index - (self._ends[batch - 1] if batch else 0)
        row = {name: column[place].as_py() for name, column in self._columns[batch].items()}
        further = row.pop("further")
        if row["references"] is None:
            row["references"] = [row["target"]]
        return row if further is None else row | json.loads(further)

    def column(self, name: str) -> pa.ChunkedArray:
        """One field of all rows, without a copy."""
        return pa.chunked_array([columns[name] for columns in self._columns], _SCHEMA.field(name).type)

    def values(self, numbers: np.ndarray, *names: str) -> Iterator[tuple]:
        """Yield some fields of some rows, whose numbers ascend; of one batch of the table at a time."""
        begin = first = 0
        for columns, end in zip(self._columns, self._ends):
            stop = int(np.searchsorted(numbers, end))
            chosen = pa.array(numbers[begin:stop] - first)
            yield from zip(*(columns[name].take(chosen).to_pylist() for name in names))
            begin, first = stop, end

    def select(self, tasks: Sequence[str] | None = None, split: str | None = None) -> np.ndarray:
        """Numbers [N] int32 of the rows with one of these tasks and this split; None takes all."""
        allowed = {"task": tasks, "split": None if split is None else [split]}
        values = {name: pa.array(names, pa.string()) for name, names in allowed.items() if names is not None}
        chosen, first = [np.empty(0, dtype=np.int32)], 0
        for end in self._ends:
            keep = np.ones(end - first, dtype=bool)
            # Its own mapping, which ends here: the columns would stay resident in the one that lasts.
            batch = self._open().get_batch(len(chosen) - 1) if values else None
            for name, value_set in values.items():
                keep &= pc.is_in(batch.column(name), value_set=value_set).to_numpy(zero_copy_only=False)
            chosen.append((np.flatnonzero(keep) + first).astype(np.int32))
            first = end
        return np.concatenate(chosen)

    def tasks_and_splits(self) -> set[tuple[str, str]]:
        """All (task, split) that rows have."""
        pairs = pa.table({name: self.column(name) for name in ("task", "split")}).group_by(["task", "split"])
        return {(pair["task"], pair["split"]) for pair in pairs.aggregate([]).to_pylist()}


def made_once(manifest: Path, suffix: str, is_good: Callable[[Path], bool], make: Callable[[Path], None]) -> Path:
    """File that belongs to a manifest, made by the first process that asks for it while the others wait.

    Parameters
    ----------
    manifest : Path
    suffix : str
        The file is called `.<manifest's name><suffix>`.
    is_good : callable
        Whether the file there (which may be missing or damaged) can be used.
    make : callable
        Writes the file to the path it is given, which is not yet the final one.

    Raises
    ------
    OSError
        Neither the manifest's folder nor the cache folder can be written.
    """
    folder = hashlib.blake2b(os.fsencode(manifest.parent.resolve()), digest_size=8).hexdigest()
    name = f".{manifest.name}{suffix}"
    beside, fallback = manifest.parent / name, cache_folder() / "manifests" / folder / name
    for file in (beside, fallback):
        if is_good(file):
            return file
    for file in (beside, fallback):
        lock = FileLock(f"{file}.lock")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            if file == fallback or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            log.warning("%s cannot be written (%s): %s goes to %s", beside.parent, error.strerror, name, fallback)
            continue
        unfinished = file.with_name(file.name + ".tmp")
        try:
            if not is_good(file):
                make(unfinished)
                os.replace(unfinished, file)
            break
        finally:
            unfinished.unlink(missing_ok=True)
            lock.release()
    return file


def _stamp(path: Path) -> dict[str, Any]:
    with open_manifest(path) as file:
        status = os.fstat(file.fileno())
        ends = file.read(_END_BYTES)
        file.seek(max(0, status.st_size - _END_BYTES))
        ends += file.read()
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


def _write(path: Path, file: Path) -> None:
    log.info("%s: making its table, once", path)
    stamp, content = _stamp(path), hashlib.blake2b(digest_size=16)
    with open_manifest(path) as source:
        while block := source.read(1 << 20):
            content.update(block)
    about = {"format": FORMAT, "stamp": stamp, "content": content.hexdigest()}
    schema = _SCHEMA.with_metadata({"manifest": json.dumps(about)})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for rows in _portions(iterate_manifest(path, instruction_required=False)):
            arrays = [pa.array(values, field.type) for values, field in zip(zip(*rows), schema)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    if _stamp(path) != stamp:
        raise ManifestError(f"{path}: changed while it was read; start again when it is finished")


def _portions(rows: Iterable[dict[str, Any]]) -> Iterator[list[list[Any]]]:
    """Rows as lists of their columns' values, in portions that become one batch each."""
    portion, characters = [], 0
    for row in rows:
        values = [row.pop(name) for name in _SCHEMA.names[:-1]]
        if values[-1] == [values[_TEXTS.index("target")]]:
            values[-1] = None
        values.append(json.dumps(row) if row else None)
        portion.append(values)
        characters += sum(len(value) for value in values if isinstance(value, str)) + sum(map(len, values[-2] or ()))
        if len(portion) == _BATCH_ROWS or characters > _BATCH_CHARACTERS:
            yield portion
            portion, characters = [], 0
    if portion:
        yield portion
