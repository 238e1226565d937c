"""SLAM-LLM: JSON lines with key, source, target and, if present, prompt."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.formats import Report, Row, checked_rows, json_lines, rename_to_manifest

NAMES = {"id": ("key",), "audio": ("source",), "target": ("target",), "instruction": ("prompt",)}


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield rows.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.jsonl"
    >>> _ = file.write_text('{"key": "u1", "source": "1.wav", "target": "hello"}\\n')
    >>> rows = read(file, Report(), {"dataset": "d", "split": "train", "task": "asr", "instruction": "Transcribe."})
    >>> [(row["id"], row["audio"], row["target"]) for row in rows]
    [('u1', '1.wav', 'hello')]
    """
    names = {**NAMES, **(fields or {})}
    return checked_rows(
        path, json_lines(path), lambda entry: rename_to_manifest(entry, names, report), report, defaults
    )
