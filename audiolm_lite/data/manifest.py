"""Manifests: JSON lines with one row per utterance and task, read and written row by row, whatever their size."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from audiolm_lite.data.row_checks import ManifestError, RowChecker
from audiolm_lite.storage.atomic import atomic_path

# Longest line that is read, in bytes. Rows take a few kB even with word timings: a longer line is a file of another
# kind, or one that has lost its line ends, and must not fill the memory before it is refused.
MAX_LINE_BYTES = 16 << 20

# What json.loads accepts although JSON or UTF-8 does not allow it: NaN, infinities, half of a surrogate pair.
_SUSPECT = re.compile(rb"NaN|Infinity|\\u[dD][89a-fA-F]")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def iterate_manifest(
    path: str | Path, rejects: list[dict[str, Any]] | None = None, *, instruction_required: bool = True
) -> Iterator[dict[str, Any]]:
    """Read and check a manifest row by row.

    Parameters
    ----------
    path : str or Path
        UTF-8 JSON lines, with or without a byte order mark, with LF or CR LF line ends; blank lines are allowed.
    rejects : list, optional
        Receives each error as `{"line": number, "id": the row's id if it is known, "reason": message}`, and reading
        continues. If None, the first invalid row raises.
    instruction_required : bool
        False: rows may lack an instruction (absent or null), which question files then supply.

    Yields
    ------
    dict
        Rows in file order with `id, audio, start` (s), `duration` (s; None: to the end), `task, instruction, target,
        references` (list; by default the target alone), `dataset, split, language, speaker`; further fields are kept.

    Raises
    ------
    ManifestError
        The file cannot be read or has no row or, without `rejects`, a row breaks the schema.

    Examples
    --------
    >>> file, rejects = getfixture("tmp_path") / "train.jsonl", []
    >>> _ = file.write_text('{"id": "1"}')
    >>> list(iterate_manifest(file, rejects))
    []
    >>> rejects[0]["line"], rejects[0]["id"], rejects[0]["reason"].split("line 1, ")[1]
    (1, '1', 'field "audio": missing; write a string')
    """
    for row, _, _ in iterate_lines(path, rejects, instruction_required=instruction_required):
        yield row


def iterate_lines(
    path: str | Path, rejects: list[dict[str, Any]] | None = None, *, instruction_required: bool = True
) -> Iterator[tuple[dict[str, Any], int, bytes]]:
    """Yield rows as `iterate_manifest` does, each with the byte offset of its line in the file, and the line.

    `with_defaults(json.loads(line))` is the row.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.jsonl"
    >>> row = {"audio": "a.wav", "task": "asr", "instruction": "Spell it.", "target": "", "dataset": "d", "split": "s"}
    >>> write_manifest(file, [{**row, "id": "first"}, {**row, "id": "second"}])
    2
    >>> content = file.read_bytes()
    >>> [(row["id"], content[offset:].startswith(line)) for row, offset, line in iterate_lines(file)]
    [('first', True), ('second', True)]
    """
    path, number = Path(path), 0
    checker = RowChecker(path, "line", instruction_required)
    with open_manifest(path) as file:
        for number, offset, line in _lines(file):
            row = None
            try:
                row = _decode(line, f"{path}, line {number}")
                checked = checker.check(row, number)
            except ManifestError as error:
                if rejects is None:
                    raise
                known = {"id": row["id"]} if isinstance(row, dict) and isinstance(row.get("id"), str) else {}
                rejects.append({"line": number, **known, "reason": str(error)})
            else:
                yield checked, offset, line
    if number == 0:
        raise ManifestError(f"{path}: has no row; write the manifest again, or name another one")


def read_manifest(path: str | Path, *, instruction_required: bool = True) -> list[dict[str, Any]]:
    """Read all rows of a manifest as a list; parameters and errors are those of `iterate_manifest`.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.jsonl"
    >>> row = {"id": "1", "audio": "a.wav", "task": "asr", "instruction": "Transcribe.", "target": "yes"}
    >>> write_manifest(file, [{**row, "dataset": "toy", "split": "train"}])
    1
    >>> [(row["id"], row["start"], row["language"]) for row in read_manifest(file)]
    [('1', 0.0, 'en')]
    """
    return list(iterate_manifest(path, instruction_required=instruction_required))


def write_manifest(path: str | Path, rows: Iterable[dict[str, Any]], *, instruction_required: bool = True) -> int:
    """Check rows and write them one by one; after an error, nothing is written.

    Returns
    -------
    int
        Number of rows.

    Raises
    ------
    ManifestError
        A row breaks the schema or has a value that JSON cannot hold, or there is no row.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.jsonl"
    >>> row = {"id": "1", "audio": "a.wav", "task": "asr", "instruction": "Transcribe.", "target": "yes"}
    >>> write_manifest(file, [{**row, "dataset": "toy", "split": "train"}])
    1
    >>> [(row["id"], row["duration"], row["references"]) for row in read_manifest(file)]
    [('1', None, ['yes'])]
    """
    path, number = Path(path), 0
    checker = RowChecker(path, "row", instruction_required)
    with atomic_path(path) as unfinished, unfinished.open("wb") as file:
        for number, row in enumerate(rows, start=1):
            line = _encode(checker.check(row, number), f"{path}, row {number}") + b"\n"
            if len(line) > MAX_LINE_BYTES:
                raise ManifestError(f"{path}, row {number}: more than {MAX_LINE_BYTES} bytes; shorten its fields")
            file.write(line)
        if number == 0:
            raise ManifestError(f"{path}: there is no row to write; check what selected or rejected the rows")
    return number


def audio_path(manifest: str | Path, row: Mapping[str, Any]) -> Path:
    """Return the audio file of a row or clip; a relative path starts at the manifest's folder.

    Examples
    --------
    >>> audio_path("data/train.jsonl", {"audio": "wav/a.wav"}).as_posix()
    'data/wav/a.wav'
    """
    return Path(manifest).parent / row["audio"]


def open_manifest(path: Path) -> BinaryIO:
    """Open a manifest for reading; raises ManifestError if it cannot be opened.

    Examples
    --------
    >>> open_manifest(Path("missing.jsonl"))
    Traceback (most recent call last):
    audiolm_lite.data.row_checks.ManifestError: missing.jsonl: no such manifest; ...
    """
    if path.is_dir():
        raise ManifestError(f"{path}: is a folder; name the manifest in it")
    if not path.exists():
        raise ManifestError(f"{path}: no such manifest; run the recipe's prepare.py or correct the path")
    try:
        return path.open("rb")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, byte offset and content of non-blank lines; of a too long one only MAX_LINE_BYTES + 1 bytes."""
    number = end = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        begin, end = end, end + len(line)
        last = line
        while len(line) > MAX_LINE_BYTES and last and not last.endswith(b"\n"):
            last = file.readline(1 << 20)
            end += len(last)
        # At the start of any line, since files with a byte order mark are often concatenated.
        text = line.removeprefix(_BYTE_ORDER_MARK)
        if text and not text.isspace():
            yield number, begin + len(line) - len(text), text


def _decode(line: bytes, where: str) -> Any:
    """Decode the JSON of a line; raises ManifestError with the cause if that fails."""
    if len(line) > MAX_LINE_BYTES:
        raise ManifestError(f"{where}: more than {MAX_LINE_BYTES} bytes; write one short row per line")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(f"{where}: UTF-16; convert the file with: iconv -f UTF-16 -t UTF-8")
    try:
        row = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{where}: byte {error.start + 1} is not UTF-8 ({error.reason}); convert the file with iconv"
        ) from error
    except json.JSONDecodeError as error:
        raise ManifestError(f"{where}: not JSON ({error}); write one object per line") from error
    except (ValueError, RecursionError) as error:  # a repeated field, thousands of digits, too deep nesting
        raise ManifestError(f"{where}: cannot be read ({error}); write one plain object per line") from error
    if _SUSPECT.search(line) and isinstance(row, dict):
        for field in row.keys() - {"start", "duration"}:  # RowChecker has better messages for these
            _encode({field: row[field]}, f'{where}, field "{field}"')
    return row


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {max(fields, key=names.count)!r} occurs more than once")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


def _encode(row: dict[str, Any], where: str) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ManifestError(f"{where}: half of a surrogate pair is not text; write the whole character") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(
            f"{where}: not a JSON value ({error}); write text, finite numbers, lists and objects"
        ) from error
