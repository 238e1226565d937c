"""The schema of manifest rows: their fields, defaults and checks."""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

from audiolm_lite.config.errors import UserError

# Optional field -> default.
_DEFAULTS = {"start": 0.0, "duration": None, "language": "en", "speaker": ""}
_TEXT_FIELDS = ("id", "audio", "task", "target", "dataset", "split", "language", "speaker")
_NON_EMPTY_FIELDS = ("id", "audio", "task", "dataset", "split")


class ManifestError(UserError, ValueError):
    """A manifest that breaks the schema; the message names file, line, field and remedy."""


def with_defaults(row: dict[str, Any]) -> dict[str, Any]:
    """Return a valid row with the defaults of its missing fields.

    Examples
    --------
    >>> row = {"id": "1", "audio": "a.wav", "task": "asr", "target": "yes", "dataset": "d", "split": "test", "start": 2}
    >>> complete = with_defaults(row)
    >>> {name: complete[name] for name in complete.keys() - row.keys() | {"start"}} == {
    ...     "start": 2.0, "duration": None, "language": "en", "speaker": "", "instruction": None, "references": ["yes"]
    ... }
    True
    """
    row = {**_DEFAULTS, **row}
    row.setdefault("instruction", None)
    row["start"] = float(row["start"])
    row["duration"] = None if row["duration"] is None else float(row["duration"])
    row.setdefault("references", [row["target"]])
    return row


class RowChecker:
    """Check the rows of one manifest.

    Parameters
    ----------
    path : Path
        The manifest, for messages.
    unit : str
        What messages count: "line" or "row".
    instruction_required : bool
        False: rows may lack an instruction.
    """

    def __init__(self, path: Path, unit: str, instruction_required: bool = True):
        self.path, self.unit, self.instruction_required = path, unit, instruction_required
        self._ids = _SeenIds()

    def check(self, row: Any, number: int) -> dict[str, Any]:
        """Return the row of this line or row number with its defaults; raises ManifestError if it is invalid."""
        where = f"{self.path}, {self.unit} {number}"
        if not isinstance(row, dict):
            raise ManifestError(f"{where}: a row is an object with named fields, not {type(row).__name__}")
        row = {**_DEFAULTS, **row}

        def refuse(field: str, remedy: str) -> NoReturn:
            value = f"{row[field]!r:.80}" if field in row else "missing"
            raise ManifestError(f'{where}, field "{field}": {value}; {remedy}')

        for field in _TEXT_FIELDS:
            if not isinstance(row.get(field), str):
                refuse(field, "write a string")
            if field in _NON_EMPTY_FIELDS and not row[field].strip():
                refuse(field, "write a string that is not empty")
        if "\0" in row["audio"]:
            refuse("audio", "a path cannot contain a NUL character; remove it")
        if not isinstance(row.get("instruction"), str) and (
            self.instruction_required or row.get("instruction") is not None
        ):
            refuse("instruction", "write a string, or take the questions from files (question_files)")
        if not _is_start(row["start"]):
            refuse("start", "write seconds >= 0")
        if not _is_duration(row["duration"]):
            refuse("duration", "write seconds > 0, or null for everything after the start")
        if not is_channel(row.get("channel")):
            refuse("channel", "write the number of a channel, from 0, or null for the mean of all")
        if not _are_clips(row.get("further_audio", [])):
            remedy = "write a list of objects with audio (a path) and optionally start, duration and channel"
            refuse("further_audio", remedy)
        if not _are_turns(row.get("history", [])):
            refuse("history", "write a list of objects with instruction and target, both strings")
        references = row.get("references", [row["target"]])
        if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
            refuse("references", "write a list of at least one string")
        first = self._ids.first_number(row["id"], number)
        if first != number:
            refuse("id", f"{self.unit} {first} has the same id; make every id unique")
        return with_defaults(row)


class _SeenIds:
    """Row ids seen so far and the lines of their first use, in 13 bytes each; a dict of strings takes over 200.

    An id is identified by 80 bits of its hash, of which 16 select a bucket. The probability that two of a billion
    different ids have the same bits is below one in a million.
    """

    def __init__(self) -> None:
        self._buckets: defaultdict[bytes, bytearray] = defaultdict(bytearray)

    def first_number(self, row_id: str, number: int) -> int:
        """Return the line at which this id was first seen: `number` if it is new."""
        digest = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=10).digest()
        bucket, key = self._buckets[digest[:2]], digest[2:]
        position = bucket.find(key)
        while position % 13 and position > 0:  # the same bytes across two entries
            position = bucket.find(key, position + 1)
        if position >= 0:
            return int.from_bytes(bucket[position + 8 : position + 13], "big")
        bucket += key + number.to_bytes(5, "big")
        return number


def _is_start(value: Any) -> bool:
    return _is_seconds(value) and value >= 0


def _is_duration(value: Any) -> bool:
    return value is None or (_is_seconds(value) and value > 0)


def is_channel(value: Any) -> bool:
    """Whether a value is a channel of a recording: its number, counted from 0, or None for the mean of all.

    Examples
    --------
    >>> [is_channel(value) for value in (None, 0, 1, -1, "left", True)]
    [True, True, True, False, False, False]
    """
    return value is None or (type(value) is int and 0 <= value < 2**15)


def _is_seconds(value: Any) -> bool:
    # An int of hundreds of digits is invalid, since no float can hold it.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _are_clips(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(clip, dict)
        and isinstance(clip.get("audio"), str)
        and clip["audio"].strip()
        and _is_start(clip.get("start", 0.0))
        and _is_duration(clip.get("duration"))
        and is_channel(clip.get("channel"))
        for clip in value
    )


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("instruction"), str) and isinstance(turn.get("target"), str)
        for turn in value
    )
