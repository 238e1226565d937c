"""Open-ASQA (LTU-AS): one JSON list of {audio_id, dataset, task, instruction, input, output}; input is a transcript."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.data.manifest import audio_path
from data_prep.formats import (
    FormatError,
    Report,
    Row,
    atomic_file,
    items_of,
    read_json,
    rows_of,
    to_json,
    to_ours,
    to_theirs,
    whole_clip,
)

NAMES = {"audio": ("audio_id",), "target": ("output",), "transcript": ("input",)}


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield rows; an empty input is no transcript."""
    content = read_json(path)
    if not isinstance(content, list):
        raise FormatError(f"{path}: expected a list of questions; is it of another format?")

    def to_row(item: Any) -> Row:
        row = to_ours(item, {**NAMES, **(fields or {})}, report)
        return {name: value for name, value in row.items() if name != "transcript" or value != ""}

    return rows_of(path, enumerate(content, start=1), to_row, report, defaults, unit="question")


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write one question a line; rows that are parts of a file are set aside, since the format knows whole files."""

    def to_item(row: Row) -> dict:
        if row.get("transcript") == "":
            report.lost["transcript"] += 1
        return to_theirs({"transcript": "", **whole_clip(row, audio_path(path, row))}, NAMES, report)

    with atomic_file(path) as file:
        file.write("[")
        for number, item in enumerate(items_of(rows, to_item, report)):
            file.write(f"{',' if number else ''}\n{to_json(item)}")
        file.write("\n]\n")
