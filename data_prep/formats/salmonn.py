"""SALMONN: one JSON object {"annotation": [{path, text, task, Q}, ...]}."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

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

NAMES = {"audio": ("path",), "target": ("text",), "instruction": ("Q",)}


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield rows."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotation"), list):
        raise FormatError(f'{path}: expected an object with a list "annotation"; is it of another format?')
    names = {**NAMES, **(fields or {})}
    entries = enumerate(content["annotation"], start=1)
    return rows_of(path, entries, lambda item: to_ours(item, names, report), report, defaults, unit="annotation")


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write one annotation a line; rows that are parts of a file are set aside, since SALMONN would hear all of it."""

    def to_item(row: Row) -> dict:
        return to_theirs(whole_clip(row, audio_path(path, row)), NAMES, report)

    with atomic_file(path) as file:
        file.write('{"annotation": [')
        for number, item in enumerate(items_of(rows, to_item, report)):
            file.write(f"{',' if number else ''}\n{to_json(item)}")
        file.write("\n]}\n")
