"""CSV, TSV and their like with a header; columns by their usual names, or as --field gives them."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.config.errors import did_you_mean
from data_prep.delimited import Table
from data_prep.formats import FormatError, Report, Row, checked_rows, rename_to_manifest

# Names of columns in small letters, with _ for spaces.
NAMES = {
    "id": ("id", "utterance_id", "utt_id", "segment_id", "key"),
    "audio": (
        *("audio", "path", "audio_path", "audio_filepath", "audio_file", "file", "file_path", "filepath", "file_name"),
        *("filename", "wav", "wav_path", "wav_file", "clip"),
    ),
    "target": ("target", "text", "sentence", "transcript", "transcription", "answer", "caption"),
    "instruction": ("instruction", "question", "prompt"),
    "start": ("start", "offset", "start_time"),
    "duration": ("duration",),
    "end": ("end", "end_time"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "language": ("language", "target_lang", "lang", "locale"),
}
_NEEDED = ("audio", "target")
_SECONDS = ("start", "duration", "end")


def read(
    path: Path, report: Report, defaults: Mapping[str, str], fields: Mapping[str, tuple[str, ...]] | None = None
) -> Iterator[Row]:
    """Yield rows; empty cells are missing fields, and `end` in seconds gives the duration.

    Raises
    ------
    FormatError
        The file is no table, or has no column for the audio or the text, or not one that `fields` names.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.csv"
    >>> _ = file.write_text('File name;Text;snr\\n1.wav;"hello; you";12\\n')
    >>> rows = read(file, Report(), {"dataset": "d", "split": "train", "task": "asr", "instruction": "Transcribe."})
    >>> [(row["id"], row["audio"], row["target"], row["snr"]) for row in rows]
    [('d-2', '1.wav', 'hello; you', '12')]
    """
    table = Table(path)
    columns = _columns(table, fields or {})
    names = {name: (column,) for name, column in columns.items()}

    def to_row(entry: Any) -> Row:
        for name in _NEEDED:
            if not entry[columns[name]]:
                raise FormatError(f'field "{columns[name]}": empty; write the {name}, or remove the row')
        row = rename_to_manifest({name: cell for name, cell in entry.items() if cell}, names, report)
        for name in _SECONDS:
            if name in row:
                row[name] = number(columns.get(name, name), row[name])
        if "end" in row and "duration" not in row:
            row["duration"] = row["end"] - row.get("start", 0.0)
        row.pop("end", None)
        return row

    return checked_rows(path, table.rows(), to_row, report, defaults)


def number(column: str, cell: str) -> float:
    """Number in a cell; raises FormatError, which names the column.

    Examples
    --------
    >>> number("start", "1.5")
    1.5
    """
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FormatError(f'field "{column}": {cell!r:.80} is not a number; write one, with a decimal point')
    return value


def _columns(table: Table, fields: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Field of the manifest -> column of the table."""
    columns = {}
    for name, (column,) in fields.items():
        if column not in table.columns:
            raise FormatError(f"{table.path}: no column {column!r}{did_you_mean(column, table.columns)}")
        columns[name] = column
    known = {column.casefold().replace(" ", "_"): column for column in table.columns if column not in columns.values()}
    for name, usual in NAMES.items():
        column = next((known[key] for key in usual if key in known), None)
        if name not in columns and column is not None:
            columns[name] = column
    for name in _NEEDED:
        if name not in columns:
            raise FormatError(
                f"{table.path}: no column for the {name} ({', '.join(NAMES[name])}) among "
                f"{', '.join(filter(None, table.columns))}; name it with --field {name}=COLUMN, or add a header line"
            )
    return columns
