"""Manifests of other toolkits. One file, one format.

Each file `data_prep/formats/<name>.py` has a docstring whose first line says what the format is, and two functions:

- `read(path, report, defaults, ...) -> Iterator[dict]` yields checked manifest rows (`audiolm_lite/data/manifest.py`)
  whose audio paths stand as the source has them, relative to its folder;
- `write(rows, path, report)` writes rows whose audio paths are relative to the folder that `path` lies in, all or
  nothing.

What `read` and `write` cannot use they set aside in the report and go on; what a format has no place for, they count
there. Further arguments of `read` and `write` are options of `data_prep.convert`. Here is what the formats share.
"""

import codecs
import gzip
import importlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from audiolm_lite.audio.reading import TOLERANCE, AudioError, audio_duration
from audiolm_lite.config.errors import UserError
from audiolm_lite.data.manifest import ManifestError, RowChecker

Row = dict[str, Any]


class FormatError(UserError, ValueError):
    """A manifest, or an entry of one, that is not in its format or does not fit another; says why and what to do."""


@dataclass
class Report:
    """What a conversion did: rows read and written, fields without a place in the format, and what was set aside.

    Attributes
    ----------
    read, written : int
        Entries found in the source, and rows that reached the target.
    lost : Counter
        Field -> rows whose value the format cannot hold.
    without_audio : int
        Rows whose audio file is not there; they are written all the same.
    first_without_audio : str
        The file of the first of them.
    rejected : list of dict
        Where it stood, such as `{"line": 3}`, or the `id` of a row that the target refused; and the `reason`.
    """

    read: int = 0
    written: int = 0
    lost: Counter = field(default_factory=Counter)
    without_audio: int = 0
    first_without_audio: str = ""
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, unit: str, label: int | str, reason: object) -> None:
        """Set an entry aside."""
        self.rejected.append({unit: label, "reason": str(reason)})

    def write_rejected(self, path: Path) -> None:
        """Write the rejects as JSON lines; without any, remove an older list."""
        if not self.rejected:
            path.unlink(missing_ok=True)
            return
        with atomic_file(path) as file:
            file.writelines(to_json(entry) + "\n" for entry in self.rejected)


def format_names() -> list[str]:
    """Names of all formats: the files beside this one."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "__init__")


def load_format(name: str) -> ModuleType:
    """Module of a format; raises FormatError for a name without a file."""
    if name not in format_names():
        raise FormatError(f"unknown format {name!r}; known: {', '.join(format_names())}")
    return importlib.import_module(f"{__name__}.{name}")


def rows_of(
    path: Path,
    entries: Iterable[tuple[int | str, Any]],
    to_row: Callable[[Any], Row],
    report: Report,
    defaults: Mapping[str, str],
    unit: str = "line",
) -> Iterator[Row]:
    """Turn a source's entries into checked rows; entries that are none go to the report.

    Parameters
    ----------
    path : Path
        The source, for messages.
    entries : iterable of (number or name, entry)
        An entry that is a FormatError was found to be unreadable.
    to_row : callable
        Entry -> row; may raise FormatError or AudioError.
    report : Report
    defaults : mapping
        Values of fields that an entry lacks, among them `dataset`, from which its `id` is made. An `instruction` of
        None leaves rows without one, for question files.
    unit : str
        What the source calls an entry, for messages.
    """
    checker = RowChecker(path, unit, instruction_required=defaults.get("instruction", "") is not None)
    for label, entry in entries:
        report.read += 1
        try:
            if isinstance(entry, FormatError):
                raise entry
            row = {"id": f"{defaults['dataset']}-{label}", **defaults, **to_row(entry)}
            row = checker.check(row, label if isinstance(label, int) else report.read)
            to_json(row)
        except (FormatError, ManifestError, AudioError) as error:
            report.reject(unit, label, error)
        else:
            yield row


def items_of(rows: Iterable[Row], to_item: Callable[[Row], Any], report: Report) -> Iterator[Any]:
    """Turn rows into a target's entries; rows that `to_item` refuses (FormatError, AudioError) go to the report."""
    for row in rows:
        try:
            item = to_item(row)
        except (FormatError, AudioError) as error:
            report.reject("id", row["id"], error)
        else:
            report.written += 1
            yield item


def to_ours(item: Any, names: Mapping[str, tuple[str, ...]], report: Report) -> Row:
    """Rename an entry's fields to the manifest's.

    Parameters
    ----------
    item : dict
        Fields of the source; those not named keep their name.
    names : mapping
        Field of the manifest -> names it has in the source; the first that is there is taken.
    report : Report
        Counts fields whose name is already taken.
    """
    if not isinstance(item, dict):
        raise FormatError(f"is {type(item).__name__}, not an object with named fields")
    rest, row = dict(item), {}
    for ours, theirs in names.items():
        found = next((name for name in theirs if name in rest), None)
        if found is not None:
            row[ours] = rest.pop(found)
    for name, value in rest.items():
        if name in row:
            report.lost[name] += 1
        else:
            row[name] = value
    return row


def to_theirs(row: Row, names: Mapping[str, tuple[str, ...]], report: Report) -> dict[str, Any]:
    """Rename a row's fields to the first of the source's names; the inverse of `to_ours`."""
    item = {names[name][0]: value for name, value in row.items() if name in names}
    for name, value in row.items():
        if name not in names:
            if name in item:
                report.lost[name] += 1
            else:
                item[name] = value
    return item


def whole_clip(row: Row, audio: Path) -> Row:
    """Row without its segment, for formats that know whole files only.

    Raises
    ------
    FormatError
        The row is a segment: with the whole file, its target would be wrong.
    AudioError
        Whether it is cannot be told, because the file's length cannot be read.
    """
    start, duration = row["start"], row["duration"]
    if start > 0 or (duration is not None and abs(duration - audio_duration(audio)) > TOLERANCE):
        end = "the end" if duration is None else f"{start + duration:g} s"
        raise FormatError(
            f"{row['audio']} from {start:g} s to {end} is a part of its file, and this format knows whole files only; "
            "cut the part out into a file of its own"
        )
    dropped = {"start"} if duration is not None else {"start", "duration"}
    return {name: value for name, value in row.items() if name not in dropped}


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of each line that is not blank; a line that is no JSON is given as a FormatError."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    try:
                        yield number, parse_json(line)
                    except FormatError as error:
                        yield number, error
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(
            f"{path}: not readable after line {number} ({error}); correct the path or fetch it again"
        ) from error


def read_json(path: Path) -> Any:
    """Value of a whole JSON file; raises FormatError."""
    try:
        return parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (OSError, FormatError) as error:
        raise FormatError(f"{path}: {error}") from error


def parse_json(data: bytes) -> Any:
    """Value of UTF-8 JSON; raises FormatError, also for NaN and for a name given twice, which `json` lets pass."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON in UTF-8 ({error}); write it anew") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f'"{twice}" is given twice')
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def to_json(value: Any) -> str:
    """One line of standard JSON; raises FormatError for what it cannot hold (NaN, bytes, half a surrogate pair)."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (ValueError, TypeError) as error:
        raise FormatError(f"cannot be written as JSON ({error}); correct or leave out the field") from error
    return text


@contextmanager
def atomic_file(path: Path) -> Iterator[TextIO]:
    """Text file (gzip where it is named so) that appears under its name when it is complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(unfinished, "wt", encoding="utf-8", newline="") as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Folder that appears under its name when it is complete, or not at all; one that is there is not touched."""
    if path.exists():
        raise FormatError(f"{path} is there already; remove it, or choose another name")
    unfinished = path.with_name(path.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
