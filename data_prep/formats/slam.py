"""SLAM-LLM: JSON lines with key, source, target and, where given, prompt."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from audiolm_lite.data.manifest import audio_path
from data_prep.formats import (
    Report,
    Row,
    atomic_file,
    items_of,
    json_lines,
    rows_of,
    to_json,
    to_ours,
    to_theirs,
    whole_clip,
)

NAMES = {"id": ("key",), "audio": ("source",), "target": ("target",), "instruction": ("prompt",)}


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield rows."""
    names = {**NAMES, **(fields or {})}
    return rows_of(path, json_lines(path), lambda item: to_ours(item, names, report), report, defaults)


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write one object a line; rows that are parts of a file are set aside, since SLAM-LLM would hear all of it."""

    def to_item(row: Row) -> dict:
        return to_theirs(whole_clip(row, audio_path(path, row)), NAMES, report)

    with atomic_file(path) as file:
        for item in items_of(rows, to_item, report):
            file.write(to_json(item) + "\n")
