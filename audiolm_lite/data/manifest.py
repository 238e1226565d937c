"""Manifests: JSON lines, one row an utterance and a task."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Field -> default; a row without one of the others is refused.
_DEFAULTS = {"start": 0.0, "duration": None, "language": "en", "speaker": ""}
_REQUIRED = ("id", "audio", "task", "instruction", "target", "dataset", "split")
_NEVER_EMPTY = ("id", "audio", "task", "dataset", "split")


class ManifestError(ValueError):
    """A manifest that breaks the schema; the message names file, line, field and remedy."""


def read_manifest(path: str | Path) -> list[dict[str, Any]]:
    """Read and check a manifest.

    Parameters
    ----------
    path : str or Path
        UTF-8 JSON lines; blank lines are allowed.

    Returns
    -------
    list of dict
        Rows in file order with `id, audio, start` (s), `duration` (s; None is to the end), `task, instruction, target,
        references` (list, default the target alone), `dataset, split, language, speaker`; further fields are kept.

    Raises
    ------
    ManifestError
        No such file, or the first row that breaks the schema.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; run the recipe's prepare.py or correct the path")
    rows, ids = [], {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ManifestError(
                        f"{path}, line {number}: not JSON ({error}); write one object a line"
                    ) from error
                rows.append(_checked(row, f"{path}, line {number}", ids))
    return rows


def write_manifest(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Check rows and write them, all or (on any error) none; raises ManifestError as `read_manifest` does."""
    path, ids = Path(path), {}
    lines = []
    for number, row in enumerate(rows, start=1):
        checked = _checked(row, f"{path}, row {number}", ids)
        lines.append(json.dumps(checked, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, path)


def audio_path(manifest: str | Path, row: dict[str, Any]) -> Path:
    """Audio file of a row; a relative path starts from the manifest's folder."""
    return Path(manifest).parent / row["audio"]


def _checked(row: Any, where: str, ids: dict[str, str]) -> dict[str, Any]:
    """Row with its defaults; `ids` maps the identifiers seen so far to where they stand."""
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: a row is an object with named fields, not {type(row).__name__}")
    row = {**_DEFAULTS, **row}

    def refuse(field: str, remedy: str) -> None:
        found = f"{row[field]!r:.80}" if field in row else "missing"
        raise ManifestError(f'{where}, field "{field}": {found}; {remedy}')

    for field in (*_REQUIRED, "language", "speaker"):
        if not isinstance(row.get(field), str):
            refuse(field, "write a string")
        if field in _NEVER_EMPTY and not row[field].strip():
            refuse(field, "write a string that is not empty")
    if not _is_seconds(row["start"]) or row["start"] < 0:
        refuse("start", "write seconds >= 0")
    if row["duration"] is not None and (not _is_seconds(row["duration"]) or row["duration"] <= 0):
        refuse("duration", "write seconds > 0, or null for all that follows the start")
    references = row.setdefault("references", [row["target"]])
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        refuse("references", "write a list of at least one string")
    if row["id"] in ids:
        refuse("id", f"{ids[row['id']]} has the same; make every id unique")
    ids[row["id"]] = where
    return row


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
