"""NeMo: JSON lines with audio_filepath, offset, duration, question (or context), answer (or text)."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.formats import Report, Row, atomic_file, items_of, json_lines, rows_of, to_json, to_ours, to_theirs

# Older manifests have `text`, newer ones `context`. NeMo passes over further fields, so they are kept.
NAMES = {
    "audio": ("audio_filepath",),
    "start": ("offset",),
    "duration": ("duration",),
    "instruction": ("question", "context"),
    "target": ("answer", "text"),
}


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield rows; a duration of null is the whole file, and a missing or null offset its start."""

    def to_row(item: Any) -> Row:
        row = to_ours(item, {**NAMES, **(fields or {})}, report)
        return {**row, "start": 0.0} if row.get("start") is None else row

    return rows_of(path, json_lines(path), to_row, report, defaults)


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write one object a line; fields that NeMo does not know keep their names."""
    with atomic_file(path) as file:
        for item in items_of(rows, lambda row: to_theirs(row, NAMES, report), report):
            file.write(to_json(item) + "\n")
