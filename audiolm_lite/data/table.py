"""Where each row of a manifest is, and what rows are chosen by: millions of rows open at once, shared by processes.

Beside `train.jsonl` lies `.train.jsonl.rows`, a safetensors file that is made, and all rows checked, when the manifest
is first opened, and again when it has changed. It is memory-mapped; rows themselves are read from the manifest:

    begin    [N] uint64      first byte of the row's line in the manifest
    start, duration  [N] float64   of the row; NaN where the duration is null
    audio_end  [N] uint64    end in `audio`
    size     [N] uint32      bytes of the line
    crc32    [N] uint32      of the line
    kind     [N] uint32      task and split: the place in the metadata's "kinds"
    questioned, several  [N] bool  whether the row has an instruction, and clips after the first
    audio    uint8           the rows' audio paths, UTF-8

The metadata has "manifest", of which manifest it is, and "kinds", a JSON list of [task, split].
"""

import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from audiolm_lite.cache import made_once
from audiolm_lite.data.manifest import ManifestError, completed, iterate_lines, open_manifest
from audiolm_lite.mapped import arrays_of, map_file, metadata_of, write_columns

log = logging.getLogger(__name__)

FORMAT = 2
_COLUMNS = {
    "begin": np.uint64,
    "start": np.float64,
    "duration": np.float64,
    "audio_end": np.uint64,
    "size": np.uint32,
    "crc32": np.uint32,
    "kind": np.uint32,
    "questioned": np.bool_,
    "several": np.bool_,
    "audio": np.uint8,
}
_PORTION = 1 << 16  # rows handled at once
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
        self.file = made_once(
            self.path,
            ".rows",
            lambda file: _source(file).get("stamp") == stamp,
            lambda file: _write(self.path, stamp, file),
        )
        self.content = _source(self.file)["content"]
        self._map()

    def _map(self) -> None:
        self._table = self.file.open("rb")
        data = map_file(self._table)
        metadata = metadata_of(data)
        source = json.loads(metadata["manifest"])
        if source["content"] != self.content or source["stamp"] != _stamp(self._manifest):
            raise self._changed()
        self._kinds = [tuple(kind) for kind in json.loads(metadata["kinds"])]
        arrays = arrays_of(data)
        # Rows are looked up one by one, which is faster in these than in arrays.
        self._begins, self._sizes, self._codes = (memoryview(arrays[name]) for name in ("begin", "size", "crc32"))

    def _changed(self) -> ManifestError:
        return ManifestError(f"{self.path}: has changed since it was opened; start again")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "file": self.file, "content": self.content}  # each process opens the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.file, self.content = state["path"], state["file"], state["content"]
        self._manifest = open_manifest(self.path)
        self._map()

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row as `read_manifest` gives it."""
        # Not mapped: it shall not count as this process's memory, and a file cut short while mapped ends a process.
        line = os.pread(self._manifest.fileno(), self._sizes[index], self._begins[index])
        if zlib.crc32(line) != self._codes[index]:
            raise self._changed()
        return completed(json.loads(line.decode()))

    def column(self, name: str) -> np.ndarray:
        """One field [N] of all rows; `audio` is read by `clips`."""
        # Its own mapping, which ends with the array: the pages would stay resident in the one that lasts.
        return arrays_of(map_file(self._table))[name]

    def clips(self, numbers: np.ndarray) -> Iterator[tuple[str, float, float | None]]:
        """Yield audio, start and duration of some rows, whose numbers [N] ascend."""
        for first in range(0, len(self), _PORTION):
            arrays = arrays_of(map_file(self._table))
            here = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, first + _PORTION)]
            ends = arrays["audio_end"]
            begins = np.where(here > 0, ends[here - 1], 0)
            audio = memoryview(arrays["audio"])
            names = (str(audio[begin:end], "utf-8") for begin, end in zip(begins.tolist(), ends[here].tolist()))
            durations = arrays["duration"][here].tolist()
            seconds = (None if math.isnan(duration) else duration for duration in durations)
            yield from zip(names, arrays["start"][here].tolist(), seconds)

    def select(self, tasks: Sequence[str] | None = None, split: str | None = None) -> np.ndarray:
        """Numbers [N] int32 of the rows with one of these tasks and this split; None takes all."""
        wanted = [(tasks is None or task in tasks) and split in (None, of) for task, of in self._kinds]
        if all(wanted):
            return np.arange(len(self), dtype=np.int32)
        kinds, found = self.column("kind"), [np.empty(0, np.int32)]
        for first in range(0, len(self), _PORTION):
            chosen = np.flatnonzero(np.array(wanted)[kinds[first : first + _PORTION]])
            found.append((chosen + first).astype(np.int32))
        return np.concatenate(found)

    def tasks_and_splits(self) -> set[tuple[str, str]]:
        """All (task, split) that rows have."""
        return set(self._kinds)


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
        with file.open("rb") as stream:
            data = map_file(stream)
        found = json.loads(metadata_of(data)["manifest"])
        return found if found["format"] == FORMAT and arrays_of(data).keys() == _COLUMNS.keys() else {}
    except (OSError, KeyError, TypeError, ValueError):
        return {}


def _write(path: Path, stamp: dict[str, Any], file: Path) -> None:
    log.info("%s: making its table, once", path)
    content = hashlib.blake2b(digest_size=16)
    with open_manifest(path) as source:
        while block := source.read(1 << 20):
            content.update(block)
    about = {"format": FORMAT, "stamp": stamp, "content": content.hexdigest()}
    kinds: dict[tuple[str, str], int] = {}
    write_columns(
        file,
        _COLUMNS,
        _portions(iterate_lines(path, instruction_required=False), kinds),
        lambda: {"manifest": json.dumps(about), "kinds": json.dumps(list(kinds))},
    )
    with open_manifest(path) as source:
        if _stamp(source) != stamp:
            raise ManifestError(f"{path}: changed while it was read; start again when it is finished")


def _portions(
    lines: Iterator[tuple[dict[str, Any], int, bytes]], kinds: dict[tuple[str, str], int]
) -> Iterator[dict[str, np.ndarray]]:
    """Columns of some rows at a time; adds the place of each task and split to `kinds`."""
    audio_end = 0
    while portion := [_facts(*line, kinds) for line in islice(lines, _PORTION)]:
        *numbers, names = zip(*portion)
        columns = {name: np.array(values, _COLUMNS[name]) for name, values in zip(_NUMBERS, numbers)}
        columns["audio_end"] = audio_end + np.cumsum([len(name) for name in names], dtype=np.uint64)
        columns["audio"] = np.frombuffer(b"".join(names), np.uint8)
        audio_end = columns["audio_end"][-1]
        yield columns


_NUMBERS = ("begin", "size", "crc32", "start", "duration", "kind", "questioned", "several")


def _facts(row: dict[str, Any], begin: int, line: bytes, kinds: dict[tuple[str, str], int]) -> tuple:
    """Values of _NUMBERS, and the audio path."""
    duration = math.nan if row["duration"] is None else row["duration"]
    kind = kinds.setdefault((row["task"], row["split"]), len(kinds))
    asked, several = row["instruction"] is not None, bool(row.get("further_audio"))
    return begin, len(line), zlib.crc32(line), row["start"], duration, kind, asked, several, row["audio"].encode()
