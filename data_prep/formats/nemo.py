"""NeMo: JSON lines with audio_filepath, offset, duration, question (or context), answer (or text)."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.formats import (
    FormatError,
    Report,
    Row,
    atomic_file,
    items_of,
    json_lines,
    rows_of,
    to_json,
    to_ours,
    to_theirs,
)

# Older manifests have `text`, newer ones `context`. NeMo passes over further fields, so they are kept.
NAMES = {
    "audio": ("audio_filepath",),
    "start": ("offset",),
    "duration": ("duration",),
    "instruction": ("question", "context"),
    "target": ("answer", "text"),
}

_SEGMENT = r"-sub\d+(?=(\.\w+)?$)"


def read(
    path: Path,
    report: Report,
    defaults: Mapping[str, str],
    fields: Mapping[str, tuple[str, ...]] | None = None,
    shards: str | None = None,
) -> Iterator[Row]:
    """Yield rows; a duration of null is the whole file, and a missing or null offset its start.

    `shards`, a pattern of tar files such as audio__OP_0..511_CL_.tar, has the audio of rows with a `shard_id` in them.
    """
    files = _shards(shards, path.parent)

    def to_row(item: Any) -> Row:
        row = to_ours(item, {**NAMES, **(fields or {})}, report)
        if row.get("start") is None:
            row["start"] = 0.0
        if files and "shard_id" in row and isinstance(row.get("audio"), str):
            if not isinstance(row["shard_id"], int) or row["shard_id"] not in files:
                raise FormatError(f"shard_id {row['shard_id']!r} is none of the {len(files)} shards of {shards}")
            # The second segment of a file is listed as file-sub1.wav, and the file is in the shard once.
            row["audio"] = f"{files[row['shard_id']]}/{re.sub(_SEGMENT, '', row['audio'])}"
        return row

    return rows_of(path, json_lines(path), to_row, report, defaults)


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write one object a line; fields that NeMo does not know keep their names.

    Of audio in a shard, NeMo wants the member's name and the shard's number.
    """

    def to_item(row: Row) -> dict[str, Any]:
        _, inside, member = row["audio"].rpartition(".tar/")
        if inside and "shard_id" in row:
            row = {**row, "audio": member}
        return to_theirs(row, NAMES, report)

    with atomic_file(path) as file:
        for item in items_of(rows, to_item, report):
            file.write(to_json(item) + "\n")


def expand_shards(pattern: str | Path) -> list[Path]:
    """Files that a pattern names.

    Parameters
    ----------
    pattern : str or Path
        A path with ranges as NeMo writes them, audio__OP_0..511_CL_.tar, or as shells do, audio_{0..511}.tar.
    """
    from braceexpand import braceexpand  # installed with webdataset

    return [Path(path) for path in braceexpand(str(pattern).replace("_OP_", "{").replace("_CL_", "}"))]


def _shards(pattern: str | None, folder: Path) -> dict[int, str]:
    """Number of each shard -> its path from the manifest's folder."""
    if pattern is None:
        return {}
    return {
        _shard_number(file): os.path.relpath(file.parent.resolve() / file.name, folder.resolve())
        for file in expand_shards(pattern)
    }


def _shard_number(file: Path) -> int:
    """Last number in the name of a shard; raises FormatError if there is none."""
    numbers = re.findall(r"\d+", file.stem)
    if not numbers:
        raise FormatError(f"{file}: a shard's name ends in its number, such as audio_0.tar; rename it")
    return int(numbers[-1])
