"""Manifests: JSON lines, one row an utterance and a task; read and written row by row, whatever their size."""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from audiolm_lite.config.errors import UserError

# Longest line that is read, in bytes. Rows are a few kB even with timed words: a longer one is a file of another kind,
# or one whose line ends were lost, and must not fill the memory before it is refused.
MAX_LINE_BYTES = 16 << 20

# Field -> default; a row without one of the others is refused.
_DEFAULTS = {"start": 0.0, "duration": None, "language": "en", "speaker": ""}
_TEXTS = ("id", "audio", "task", "target", "dataset", "split", "language", "speaker")
_NEVER_EMPTY = ("id", "audio", "task", "dataset", "split")
# What json.loads takes and JSON or UTF-8 does not have: NaN, infinities, half of a surrogate pair.
_SUSPECT = re.compile(rb"NaN|Infinity|\\u[dD][89a-fA-F]")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ManifestError(UserError, ValueError):
    """A manifest that breaks the schema; the message names file, line, field and remedy."""


def iterate_manifest(
    path: str | Path, rejects: list[dict[str, Any]] | None = None, *, instruction_required: bool = True
) -> Iterator[dict[str, Any]]:
    """Read and check a manifest row by row.

    Parameters
    ----------
    path : str or Path
        UTF-8 JSON lines, with or without a byte order mark, lines ending in LF or CR LF; blank lines are allowed.
    rejects : list, optional
        Receives what is wrong as `{"line": number, "id": the row's where it is known, "reason": message}`, and reading
        goes on. Without it the first bad row is an error.
    instruction_required : bool
        False: rows may lack an instruction (absent or null), which question files then supply.

    Yields
    ------
    dict
        Rows in file order with `id, audio, start` (s), `duration` (s; None is to the end), `task, instruction, target,
        references` (list, default the target alone), `dataset, split, language, speaker`; further fields are kept.

    Raises
    ------
    ManifestError
        The file cannot be read, or, without `rejects`, a row breaks the schema.
    """
    for row, _, _ in iterate_lines(path, rejects, instruction_required=instruction_required):
        yield row


def iterate_lines(
    path: str | Path, rejects: list[dict[str, Any]] | None = None, *, instruction_required: bool = True
) -> Iterator[tuple[dict[str, Any], int, bytes]]:
    """Yield rows as `iterate_manifest` does, each with its line and the place of the line's first byte in the file.

    `completed(json.loads(line))` is the row.
    """
    path = Path(path)
    checker = RowChecker(path, "line", instruction_required)
    with open_manifest(path) as file:
        for number, begin, line in _lines(file):
            row = None
            try:
                row = _parsed(line, f"{path}, line {number}")
                checked = checker.check(row, number)
            except ManifestError as error:
                if rejects is None:
                    raise
                known = {"id": row["id"]} if isinstance(row, dict) and isinstance(row.get("id"), str) else {}
                rejects.append({"line": number, **known, "reason": str(error)})
            else:
                yield checked, begin, line


def completed(row: dict[str, Any]) -> dict[str, Any]:
    """Row with its defaults; it must be one that `RowChecker` takes."""
    row = {**_DEFAULTS, **row}
    row.setdefault("instruction", None)
    row["start"] = float(row["start"])
    row["duration"] = None if row["duration"] is None else float(row["duration"])
    row.setdefault("references", [row["target"]])
    return row


def read_manifest(path: str | Path, *, instruction_required: bool = True) -> list[dict[str, Any]]:
    """All rows of a manifest as a list; parameters and errors are those of `iterate_manifest`."""
    return list(iterate_manifest(path, instruction_required=instruction_required))


def write_manifest(path: str | Path, rows: Iterable[dict[str, Any]], *, instruction_required: bool = True) -> int:
    """Check rows and write them as they come, all or (on any error) none.

    Returns
    -------
    int
        How many rows there are.

    Raises
    ------
    ManifestError
        As `iterate_manifest`; also a value that JSON cannot hold.
    """
    path, number = Path(path), 0
    checker = RowChecker(path, "row", instruction_required)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            for number, row in enumerate(rows, start=1):
                line = _encoded(checker.check(row, number), f"{path}, row {number}") + b"\n"
                if len(line) > MAX_LINE_BYTES:
                    raise ManifestError(f"{path}, row {number}: more than {MAX_LINE_BYTES} bytes; keep rows short")
                file.write(line)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return number


def audio_path(manifest: str | Path, row: dict[str, Any]) -> Path:
    """Audio file of a row; a relative path starts from the manifest's folder."""
    return Path(manifest).parent / row["audio"]


class _Ids:
    """Identifiers seen so far and their lines, in 13 bytes each, where a dict of strings takes over 200.

    An identifier is known by 80 bits of its hash, of which 16 choose a bucket. Two of a billion different ones are
    taken for the same with a probability below one in a million.
    """

    def __init__(self):
        self._buckets: defaultdict[bytes, bytearray] = defaultdict(bytearray)

    def first_line(self, name: str, number: int) -> int:
        """Line where this identifier was seen first: `number`, if it is new."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=10).digest()
        bucket, rest = self._buckets[digest[:2]], digest[2:]
        place = bucket.find(rest)
        while place % 13 and place > 0:  # bytes of two neighbours that look like it
            place = bucket.find(rest, place + 1)
        if place >= 0:
            return int.from_bytes(bucket[place + 8 : place + 13], "big")
        bucket += rest + number.to_bytes(5, "big")
        return number


class RowChecker:
    """Checks the rows of one manifest; `unit` is how messages count them, "line" or "row"."""

    def __init__(self, path: Path, unit: str, instruction_required: bool = True):
        self.path, self.unit, self.instruction_required = path, unit, instruction_required
        self.ids = _Ids()

    def check(self, row: Any, number: int) -> dict[str, Any]:
        """Row with its defaults."""
        where = f"{self.path}, {self.unit} {number}"
        if not isinstance(row, dict):
            raise ManifestError(f"{where}: a row is an object with named fields, not {type(row).__name__}")
        row = {**_DEFAULTS, **row}

        def refuse(field: str, remedy: str) -> None:
            found = f"{row[field]!r:.80}" if field in row else "missing"
            raise ManifestError(f'{where}, field "{field}": {found}; {remedy}')

        for field in _TEXTS:
            if not isinstance(row.get(field), str):
                refuse(field, "write a string")
            if field in _NEVER_EMPTY and not row[field].strip():
                refuse(field, "write a string that is not empty")
        if "\0" in row["audio"]:
            refuse("audio", "no path has a NUL character; correct it")
        if not isinstance(row.get("instruction"), str) and (
            self.instruction_required or row.get("instruction") is not None
        ):
            refuse("instruction", "write a string, or take the questions from files (question_files)")
        if not _is_start(row["start"]):
            refuse("start", "write seconds >= 0")
        if not _is_duration(row["duration"]):
            refuse("duration", "write seconds > 0, or null for all that follows the start")
        if not _are_clips(row.get("further_audio", [])):
            refuse("further_audio", "write a list of objects with audio (a path) and, where wanted, start and duration")
        if not _are_turns(row.get("history", [])):
            refuse("history", "write a list of objects with instruction and target, both strings")
        references = row.get("references", [row["target"]])
        if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
            refuse("references", "write a list of at least one string")
        first = self.ids.first_line(row["id"], number)
        if first != number:
            refuse("id", f"{self.unit} {first} has the same; make every id unique")
        return completed(row)


def open_manifest(path: Path) -> BinaryIO:
    """Open a manifest for reading; raises ManifestError where that cannot be done."""
    if path.is_dir():
        raise ManifestError(f"{path}: is a folder; name the manifest in it")
    if not path.exists():
        raise ManifestError(f"{path}: no such manifest; run the recipe's prepare.py or correct the path")
    try:
        return path.open("rb")
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror}); correct its permissions or the path"
        ) from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Number, first byte and bytes of lines that are not blank; of one that is too long, MAX_LINE_BYTES + 1 bytes."""
    number = place = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        begin, place = place, place + len(line)
        last = line
        while len(line) > MAX_LINE_BYTES and last and not last.endswith(b"\n"):
            last = file.readline(1 << 20)
            place += len(last)
        # At the start of any line, since files with a mark are often concatenated.
        text = line.removeprefix(_BYTE_ORDER_MARK)
        if text and not text.isspace():
            yield number, begin + len(line) - len(text), text


def _parsed(line: bytes, where: str) -> Any:
    if len(line) > MAX_LINE_BYTES:
        raise ManifestError(f"{where}: more than {MAX_LINE_BYTES} bytes; write one row a line and keep it short")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(f"{where}: UTF-16; convert the file with: iconv -f UTF-16 -t UTF-8")
    try:
        row = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{where}: byte {error.start + 1} is not UTF-8 ({error.reason}); convert the file with iconv"
        ) from error
    except json.JSONDecodeError as error:
        raise ManifestError(f"{where}: not JSON ({error}); write one object a line") from error
    except (ValueError, RecursionError) as error:  # a field twice, a number of thousands of digits, endless nesting
        raise ManifestError(f"{where}: cannot be read ({error}); write one plain object a line") from error
    if _SUSPECT.search(line) and isinstance(row, dict):
        for field in row.keys() - {"start", "duration"}:  # `_checked` has better words for these
            _encoded({field: row[field]}, f'{where}, field "{field}"')
    return row


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {max(fields, key=names.count)!r} stands there more than once")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


def _encoded(row: dict[str, Any], where: str) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise ManifestError(f"{where}: half of a surrogate pair is no text; write the whole character") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: no JSON value ({error}); write text, finite numbers, lists, objects") from error


def _is_start(value: Any) -> bool:
    return _is_seconds(value) and value >= 0


def _is_duration(value: Any) -> bool:
    return value is None or (_is_seconds(value) and value > 0)


def _are_clips(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(clip, dict)
        and isinstance(clip.get("audio"), str)
        and clip["audio"].strip()
        and _is_start(clip.get("start", 0.0))
        and _is_duration(clip.get("duration"))
        for clip in value
    )


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("instruction"), str) and isinstance(turn.get("target"), str)
        for turn in value
    )


def _is_seconds(value: Any) -> bool:
    # an int of hundreds of digits is none: no float holds it
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
