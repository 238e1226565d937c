"""Manifests of other toolkits. One file per format.

Each file `data_prep/formats/<name>.py` has a docstring whose first line describes the format, and one or two functions:

- `read(path, report, defaults, ...) -> Iterator[dict]` yields checked manifest rows (`audiolm_lite/data/manifest.py`)
  with the audio paths of the source, which are relative to its folder;
- `write(rows, path, report)`, if the format can be written, writes rows whose audio paths are relative to the folder of
  `path`. The manifest is written completely or not at all.

Entries that `read` or `write` cannot use are listed in the report, and fields that the format cannot store are counted
there. Further arguments of `read` and `write` are options of `data_prep.convert`. This file has the common parts.
"""

import codecs
import gzip
import importlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from audiolm_lite.audio.reading import AudioError
from audiolm_lite.config.errors import UserError, did_you_mean
from audiolm_lite.data.row_checks import ManifestError, RowChecker, is_channel
from audiolm_lite.storage.atomic import atomic_folder, atomic_path

Row = dict[str, Any]


class FormatError(UserError, ValueError):
    """A manifest, or an entry of one, that is not in its format or cannot be written in another one."""


@dataclass
class Report:
    """Counts of a conversion, and the rejected entries.

    Attributes
    ----------
    read, written : int
        Entries in the source, and rows written to the target.
    lost : Counter
        Field -> number of rows whose value the target format cannot store.
    without_audio : int
        Rows whose audio file does not exist; they are written nevertheless.
    first_without_audio : str
        The file of the first of them.
    rejected : list of dict
        Position in the source, such as `{"line": 3}`, or the `id` of a row that the target cannot store; and the
        `reason`.
    """

    read: int = 0
    written: int = 0
    lost: Counter = field(default_factory=Counter)
    without_audio: int = 0
    first_without_audio: str = ""
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, unit: str, label: int | str, reason: object) -> None:
        """Add a rejected entry."""
        self.rejected.append({unit: label, "reason": str(reason)})

    def write_rejected(self, path: Path) -> None:
        """Write the rejected entries as JSON lines; if there are none, remove an older list."""
        if not self.rejected:
            path.unlink(missing_ok=True)
            return
        with text_file(path) as file:
            file.writelines(to_json(entry) + "\n" for entry in self.rejected)


def format_names() -> list[str]:
    """Names of all formats: the files of this package. All of them can be read.

    Examples
    --------
    >>> format_names()
    ['common_voice', 'csv', 'huggingface', 'kaldi', 'lhotse', 'manifest', 'messages', ..., 'slam', 'speechbrain']
    """
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem != "__init__")


def writable_formats() -> list[str]:
    """Names of the formats that can also be written.

    Examples
    --------
    >>> sorted(set(format_names()) - set(writable_formats()))
    ['common_voice', 'csv', 'messages', 'openasqa', 'salmonn', 'slam']
    """
    return [name for name in format_names() if hasattr(load_format(name), "write")]


def load_format(name: str) -> ModuleType:
    """Module of a format; raises FormatError if there is none of this name.

    Examples
    --------
    >>> load_format("nemo").NAMES["audio"]
    ('audio_filepath',)
    """
    if name not in format_names():
        raise FormatError(f"unknown format {name!r}{did_you_mean(name, format_names())}")
    return importlib.import_module(f"{__name__}.{name}")


def checked_rows(
    path: Path,
    entries: Iterable[tuple[int | str, Any]],
    to_row: Callable[[Any], Row],
    report: Report,
    defaults: Mapping[str, str],
    unit: str = "line",
) -> Iterator[Row]:
    """Convert a source's entries to checked rows; entries that cannot be converted are listed in the report.

    Parameters
    ----------
    path : Path
        The source, for messages.
    entries : iterable of (number or name, entry)
        An entry that could not be read is a FormatError.
    to_row : callable
        Entry -> row; may raise FormatError or AudioError.
    report : Report
        Updated.
    defaults : mapping
        Values of fields that an entry lacks. `dataset` is required: it is the first part of a missing `id`. An
        `instruction` of None leaves rows without one, for training with question files.
    unit : str
        The source's term for an entry, for messages.

    Examples
    --------
    >>> entries, report = [(1, {"audio": "1.wav", "target": "hello"}), (2, {"audio": "2.wav"})], Report()
    >>> defaults = {"dataset": "d", "split": "train", "task": "asr", "instruction": "Transcribe."}
    >>> rows = checked_rows(Path("list.json"), entries, dict, report, defaults)
    >>> [(row["id"], row["audio"], row["start"]) for row in rows]
    [('d-1', '1.wav', 0.0)]
    >>> report.rejected
    [{'line': 2, 'reason': 'list.json, line 2, field "target": missing; write a string'}]
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
        except ManifestError as error:
            report.reject(unit, label, error)
        except (FormatError, AudioError) as error:
            report.reject(unit, label, f"{path}, {unit} {label}: {error}")
        else:
            yield row


def target_entries(rows: Iterable[Row], to_entry: Callable[[Row], Any], report: Report) -> Iterator[Any]:
    """Convert rows to a target's entries; rows that raise FormatError or AudioError are listed in the report.

    Examples
    --------
    >>> report = Report()
    >>> list(target_entries([{"id": "1", "target": "hello"}], lambda row: row["target"].upper(), report))
    ['HELLO']
    >>> report.written
    1
    """
    for row in rows:
        try:
            entry = to_entry(row)
        except (FormatError, AudioError) as error:
            report.reject("id", row["id"], error)
        else:
            report.written += 1
            yield entry


def rename_to_manifest(entry: Any, names: Mapping[str, tuple[str, ...]], report: Report) -> Row:
    """Rename an entry's fields to those of the manifest.

    Parameters
    ----------
    entry : dict
        Fields of the source; those not in `names` keep their name, but a `channel` that is no number of a channel
        becomes `channel_name`.
    names : mapping
        Field of the manifest -> its possible names in the source, in order of preference.
    report : Report
        Counts fields whose name is used already.

    Raises
    ------
    FormatError
        The entry is not a dict.

    Examples
    --------
    >>> rename_to_manifest({"wrd": "hello", "snr": 12}, {"target": ("text", "wrd")}, Report())
    {'target': 'hello', 'snr': 12}
    """
    if not isinstance(entry, dict):
        raise FormatError(f"is {type(entry).__name__}, not an object with named fields")
    rest, row = dict(entry), {}
    for field_name, source_names in names.items():
        source_name = next((name for name in source_names if name in rest), None)
        if source_name is not None:
            row[field_name] = rest.pop(source_name)
    for name, value in rest.items():
        if name in row:
            report.lost[name] += 1
        else:
            row[name] = value
    if not is_channel(row.get("channel")):  # such as the name of a broadcaster
        row["channel_name"] = row.pop("channel")
    return row


def rename_from_manifest(row: Row, names: Mapping[str, tuple[str, ...]], report: Report) -> dict[str, Any]:
    """Rename a row's fields to the first of their names in the target; the inverse of `rename_to_manifest`.

    Examples
    --------
    >>> rename_from_manifest({"target": "hello", "snr": 12}, {"target": ("text", "wrd")}, Report())
    {'text': 'hello', 'snr': 12}
    """
    entry = {names[name][0]: value for name, value in row.items() if name in names}
    for name, value in row.items():
        if name not in names:
            if name in entry:
                report.lost[name] += 1
            else:
                entry[name] = value
    return entry


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each line that is not blank; the value of a line that is not JSON is a FormatError.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "list.jsonl"
    >>> _ = file.write_text('{"id": 1}\\n\\n{"id": 2\\n')
    >>> [(number, type(value).__name__) for number, value in json_lines(file)]
    [(1, 'dict'), (3, 'FormatError')]
    """
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
            f"{path}: not readable after line {number} ({error}); check the path, or download it again"
        ) from error


def read_json(path: Path) -> Any:
    """Value of a JSON file; raises FormatError.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "list.json"
    >>> _ = file.write_text('[{"id": 1}]')
    >>> read_json(file)
    [{'id': 1}]
    """
    try:
        return parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (OSError, FormatError) as error:
        raise FormatError(f"{path}: {error}") from error


def parse_json(data: bytes) -> Any:
    """Value of UTF-8 JSON; raises FormatError, also for NaN and for a repeated name, which `json` accepts.

    Examples
    --------
    >>> parse_json(b'{"id": 1}')
    {'id': 1}
    >>> parse_json(b'{"id": 1, "id": 2}')
    Traceback (most recent call last):
        ...
    data_prep.formats.FormatError: not JSON in UTF-8 ("id" is given twice); write it again
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON in UTF-8 ({error}); write it again") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f'"{repeated}" is given twice')
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def to_json(value: Any) -> str:
    """One line of standard JSON; raises FormatError for values that JSON cannot store (NaN, bytes, lone surrogates).

    Examples
    --------
    >>> to_json({"target": "안녕", "start": 0.0})
    '{"target": "안녕", "start": 0.0}'
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (ValueError, TypeError) as error:
        raise FormatError(f"cannot be written as JSON ({error}); correct or remove the field") from error
    return text


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file for an atomic write; one named .gz is compressed.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "list.txt.gz"
    >>> with text_file(path) as file:
    ...     _ = file.write("hello")
    >>> gzip.decompress(path.read_bytes())
    b'hello'
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with atomic_path(path) as unfinished, opened(unfinished, "wt", encoding="utf-8", newline="") as file:
        yield file


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give the temporary folder to fill for `path`; raises FormatError if that exists already.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "kaldi"
    >>> with new_folder(path) as folder:
    ...     _ = (folder / "text").write_text("utt1 hello\\n")
    >>> [file.name for file in path.iterdir()]
    ['text']
    """
    try:
        with atomic_folder(path) as unfinished:
            yield unfinished
    except FileExistsError as error:
        raise FormatError(str(error)) from error
