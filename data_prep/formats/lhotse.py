"""Lhotse: cuts as JSON lines (.jsonl or .jsonl.gz), one cut of one recording with its supervisions a line."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.audio.reading import audio_header
from audiolm_lite.data.manifest import audio_path
from data_prep.formats import (
    FormatError,
    Report,
    Row,
    atomic_file,
    items_of,
    json_lines,
    rows_of,
    to_json,
)

# Fields of a supervision; all others travel in the cut's `custom`.
_SUPERVISION = {"target": "text", "language": "language", "speaker": "speaker", "gender": "gender"}
# What changes nothing for a model that resamples every clip itself.
_HARMLESS_TRANSFORM = "Resample"


def read(path: Path, report: Report, defaults: Mapping[str, str]) -> Iterator[Row]:
    """Yield one row a supervision; its id is the cut's where the cut has only one.

    Set aside: cuts of other types (mixed, padded), cuts without supervisions, recordings that are no plain files (a
    command is never run), are one channel of a file with several, or are transformed (other than resampled) on reading.
    """
    return rows_of(path, _supervisions(path), lambda pair: _row(*pair, report), report, defaults)


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write one cut with one supervision a row; each file's header is read for its rate and length."""
    with atomic_file(path) as file:
        for cut in items_of(rows, lambda row: _cut(row, audio_path(path, row), report), report):
            file.write(to_json(cut) + "\n")


def _supervisions(path: Path) -> Iterator[tuple[str, Any]]:
    for number, cut in json_lines(path):
        found = cut.get("supervisions") if isinstance(cut, dict) else None
        if isinstance(cut, FormatError):
            yield str(number), cut
        elif not isinstance(found, list) or not found:
            yield str(number), FormatError("is no cut with supervisions; remove it, or give manifests of cuts")
        else:
            for which, supervision in enumerate(found, start=1):
                where = str(number) if len(found) == 1 else f"{number}, supervision {which}"
                yield where, (cut, supervision)


def _row(cut: dict[str, Any], supervision: dict[str, Any], report: Report) -> Row:
    if cut.get("type", "MonoCut") not in ("MonoCut", "MultiCut"):
        raise FormatError(f"is a {cut['type']}, of which no part of one file can be made; save it as audio first")
    try:
        alone = len(cut["supervisions"]) == 1
        row = {**(cut.get("custom") or {}), **(supervision.get("custom") or {})}
        row["id"] = cut["id"] if alone else supervision["id"]
        row["audio"] = _file(cut["recording"], cut["channel"])
        # A supervision's start counts from the cut's.
        row["start"] = round(cut["start"] + supervision["start"], 8)
        row["duration"] = supervision["duration"]
    except (KeyError, TypeError) as error:
        raise FormatError(f"is no cut as Lhotse writes it ({error!r}); write the cuts anew") from error
    for ours, theirs in _SUPERVISION.items():
        if supervision.get(theirs) is not None:
            row[ours] = supervision[theirs]
    report.lost.update(
        name for part in (cut, supervision) for name in ("features", "alignment") if part.get(name) is not None
    )
    return row


def _file(recording: dict[str, Any], channel: int | list[int]) -> str:
    """Path of the recording's file, if reading the whole of it gives this channel."""
    for transform in recording.get("transforms") or ():
        if transform.get("name") != _HARMLESS_TRANSFORM:
            raise FormatError(
                f"its audio is changed on reading ({transform.get('name')}); save the cuts as audio first"
            )
    channels = channel if isinstance(channel, list) else [channel]
    source = next((source for source in recording["sources"] if channels[0] in source["channels"]), None)
    if source is None or source["type"] != "file":
        kind = "no source" if source is None else f'a source of type "{source["type"]}"'
        raise FormatError(f"recording {recording['id']} has {kind}, not a file; save the cuts as audio first")
    if sorted(source["channels"]) != sorted(channels):
        raise FormatError(
            f"{source['source']} holds channels {source['channels']}, of which only {channels} is meant; "
            "save the channel as a file of its own"
        )
    return source["source"]


def _cut(row: Row, audio: Path, report: Report) -> dict[str, Any]:
    rate, samples, channels = audio_header(audio)
    start = row["start"]
    duration = samples / rate - start if row["duration"] is None else row["duration"]
    # A model hears the mean of the channels, so the cut is of all of them.
    channel = 0 if channels == 1 else list(range(channels))
    supervision = {"id": row["id"], "recording_id": row["id"], "start": 0.0, "duration": duration, "channel": channel}
    custom = {}
    for name, value in row.items():
        if name in _SUPERVISION and isinstance(value, str):
            supervision[_SUPERVISION[name]] = value
        elif name not in ("id", "audio", "start", "duration"):
            custom[name] = value
    return {
        "id": row["id"],
        "start": start,
        "duration": duration,
        "channel": channel,
        "supervisions": [supervision],
        "recording": {
            "id": row["id"],
            "sources": [{"type": "file", "channels": list(range(channels)), "source": row["audio"]}],
            "sampling_rate": rate,
            "num_samples": samples,
            "duration": samples / rate,
            "channel_ids": list(range(channels)),
        },
        "custom": custom,
        "type": "MonoCut" if channels == 1 else "MultiCut",
    }
