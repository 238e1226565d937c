"""NeMo: JSON lines with audio_filepath, offset, duration, channel_selector, question (or context), answer (or text)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.storage.paths import relative_path
from data_prep.formats import (
    FormatError,
    Report,
    Row,
    checked_rows,
    json_lines,
    rename_from_manifest,
    rename_to_manifest,
    target_entries,
    text_file,
    to_json,
)

# Older manifests have `text`, newer ones `context`. NeMo ignores further fields, so they are kept.
NAMES = {
    "audio": ("audio_filepath",),
    "start": ("offset",),
    "duration": ("duration",),
    "channel": ("channel_selector",),
    "instruction": ("question", "context"),
    "target": ("answer", "text"),
    "language": ("language", "target_lang", "lang"),
}

_SEGMENT = r"-sub\d+(?=(\.\w+)?$)"


def read(
    path: Path,
    report: Report,
    defaults: Mapping[str, str],
    fields: Mapping[str, tuple[str, ...]] | None = None,
    shards: str | None = None,
) -> Iterator[Row]:
    """Yield rows. A null duration means the rest of the file, and a missing or null offset means its start.

    `shards` is a pattern of tar files, such as audio__OP_0..511_CL_.tar, with the audio of the rows that have a
    `shard_id`.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.json"
    >>> _ = file.write_text('{"audio_filepath": "1.wav", "offset": null, "duration": 1.5, "text": "hello"}\\n')
    >>> rows = read(file, Report(), {"dataset": "d", "split": "train", "task": "asr", "instruction": "Transcribe."})
    >>> [(row["id"], row["audio"], row["start"], row["duration"], row["target"]) for row in rows]
    [('d-1', '1.wav', 0.0, 1.5, 'hello')]
    """
    files = _shards(shards, path.parent)

    def to_row(entry: Any) -> Row:
        if isinstance(entry, dict) and "channel_selector" in entry:
            entry = {**entry, "channel_selector": _channel(entry["channel_selector"])}
        row = rename_to_manifest(entry, {**NAMES, **(fields or {})}, report)
        if row.get("channel", 0) is None:
            del row["channel"]
        if row.get("start") is None:
            row["start"] = 0.0
        if files and "shard_id" in row and isinstance(row.get("audio"), str):
            if not isinstance(row["shard_id"], int) or row["shard_id"] not in files:
                raise FormatError(f"shard_id {row['shard_id']!r} is not one of the {len(files)} shards of {shards}")
            # The second segment of a file is listed as file-sub1.wav; the shard contains the file once.
            row["audio"] = f"{files[row['shard_id']]}/{re.sub(_SEGMENT, '', row['audio'])}"
        return row

    return checked_rows(path, json_lines(path), to_row, report, defaults)


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write one object per line; fields unknown to NeMo keep their names.

    For audio in a shard, NeMo requires the member's name and the shard's number.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "train.json"
    >>> write([{"id": "1", "audio": "1.wav", "start": 0.0, "duration": 1.5, "target": "hello"}], file, Report())
    >>> print(file.read_text().strip())
    {"audio_filepath": "1.wav", "offset": 0.0, "duration": 1.5, "answer": "hello", "id": "1"}
    """

    def to_entry(row: Row) -> dict[str, Any]:
        _, inside, member = row["audio"].rpartition(".tar/")
        if inside and "shard_id" in row:
            row = {**row, "audio": member}
        return rename_from_manifest(row, NAMES, report)

    with text_file(path) as file:
        for entry in target_entries(rows, to_entry, report):
            file.write(to_json(entry) + "\n")


def _channel(selector: Any) -> int | None:
    """Channel of NeMo's field channel_selector: a number, a list of one, or "average"; None for the mean of all."""
    if selector is None or selector == "average":
        return None
    chosen = selector[0] if isinstance(selector, list) and len(selector) == 1 else selector
    if type(chosen) is not int or chosen < 0:
        raise FormatError(
            f"channel_selector {selector!r} is not one channel; write an entry per channel, with its number from 0"
        )
    return chosen


def expand_shards(pattern: str | Path) -> list[Path]:
    """Files that a pattern names.

    Parameters
    ----------
    pattern : str or Path
        A path with ranges in the notation of NeMo, audio__OP_0..511_CL_.tar, or of shells, audio_{0..511}.tar.
    """
    from braceexpand import braceexpand

    return [Path(path) for path in braceexpand(str(pattern).replace("_OP_", "{").replace("_CL_", "}"))]


def _shards(pattern: str | None, folder: Path) -> dict[int, str]:
    """Map the number of each shard to its path, relative to the manifest's folder."""
    if pattern is None:
        return {}
    return {
        _shard_number(file): relative_path(file.parent.resolve() / file.name, folder.resolve())
        for file in expand_shards(pattern)
    }


def _shard_number(file: Path) -> int:
    """Last number in the name of a shard; raises FormatError if the name has none."""
    numbers = re.findall(r"\d+", file.stem)
    if not numbers:
        raise FormatError(f"{file}: the name of a shard must end in its number, such as audio_0.tar; rename it")
    return int(numbers[-1])
