"""SALMONN: one JSON object {"annotation": [{path, text, task, Q}, ...]}."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.formats import FormatError, Report, Row, checked_rows, read_json, rename_to_manifest

NAMES = {"audio": ("path",), "target": ("text",), "instruction": ("Q",)}


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield rows.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.json"
    >>> _ = file.write_text('{"annotation": [{"path": "1.wav", "text": "hello", "task": "asr"}]}')
    >>> rows = read(file, Report(), {"dataset": "d", "split": "train", "instruction": "Transcribe."})
    >>> [(row["id"], row["audio"], row["task"], row["target"]) for row in rows]
    [('d-1', '1.wav', 'asr', 'hello')]
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotation"), list):
        raise FormatError(f'{path}: expected an object with a list "annotation"; check the format')
    names = {**NAMES, **(fields or {})}
    entries = enumerate(content["annotation"], start=1)
    return checked_rows(
        path, entries, lambda entry: rename_to_manifest(entry, names, report), report, defaults, unit="annotation"
    )
