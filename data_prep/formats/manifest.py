"""The manifest of this project: JSON lines."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from audiolm_lite.data.manifest import iterate_manifest, write_manifest
from data_prep.formats import Report, Row, target_entries


def read(path: Path, report: Report) -> Iterator[Row]:
    """Yield checked rows. All fields are required, so there are no defaults.

    Examples
    --------
    >>> file, report = getfixture("tmp_path") / "train.jsonl", Report()
    >>> row = {"id": "1", "audio": "1.wav", "task": "asr", "target": "hello", "dataset": "d", "split": "train"}
    >>> _ = write_manifest(file, [{**row, "instruction": "Transcribe."}])
    >>> [(row["id"], row["start"], row["references"]) for row in read(file, report)]
    [('1', 0.0, ['hello'])]
    >>> report.read, report.rejected
    (1, [])
    """
    before = len(report.rejected)
    for row in iterate_manifest(path, report.rejected):
        report.read += 1
        yield row
    report.read += len(report.rejected) - before


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write rows unchanged. Rows without an instruction are allowed, for training with question files.

    Examples
    --------
    >>> file, report = getfixture("tmp_path") / "train.jsonl", Report()
    >>> row = {"id": "1", "audio": "1.wav", "task": "asr", "target": "hello", "dataset": "d", "split": "train"}
    >>> write([row], file, report)
    >>> report.written, len(file.read_text().splitlines())
    (1, 1)
    """
    write_manifest(path, target_entries(rows, lambda row: row, report), instruction_required=False)
