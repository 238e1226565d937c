"""Open-ASQA (LTU-AS): one JSON list of {audio_id, dataset, task, instruction, input, output}; input is a transcript."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.formats import FormatError, Report, Row, checked_rows, read_json, rename_to_manifest

NAMES = {"audio": ("audio_id",), "target": ("output",), "transcript": ("input",)}


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield rows; one with an empty input has no transcript.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.json"
    >>> entry = '{"audio_id": "1.wav", "task": "qa", "instruction": "Which mood?", "input": "hi", "output": "happy"}'
    >>> _ = file.write_text(f"[{entry}]")
    >>> rows = read(file, Report(), {"dataset": "d", "split": "train"})
    >>> [(row["id"], row["audio"], row["target"], row["transcript"]) for row in rows]
    [('d-1', '1.wav', 'happy', 'hi')]
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise FormatError(f"{path}: expected a list of questions; check the format")

    def to_row(entry: Any) -> Row:
        row = rename_to_manifest(entry, {**NAMES, **(fields or {})}, report)
        return {name: value for name, value in row.items() if name != "transcript" or value != ""}

    return checked_rows(path, enumerate(content, start=1), to_row, report, defaults, unit="question")
