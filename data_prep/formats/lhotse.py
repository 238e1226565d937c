"""Lhotse: cuts as JSON lines (.jsonl or .jsonl.gz), each line one cut of one recording with its supervisions."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.audio.reading import audio_header
from audiolm_lite.data.manifest import audio_path
from data_prep.formats import (
    FormatError,
    Report,
    Row,
    checked_rows,
    json_lines,
    target_entries,
    text_file,
    to_json,
)

# Fields of a supervision; all others are stored in the cut's `custom`.
_SUPERVISION = {"target": "text", "language": "language", "speaker": "speaker", "gender": "gender"}
# A transform that does not matter, because audio is resampled when it is read.
_HARMLESS_TRANSFORM = "Resample"


def read(path: Path, report: Report, defaults: Mapping[str, str]) -> Iterator[Row]:
    """Yield one row per supervision; if a cut has only one, the row's id is that of the cut.

    A supervision of one channel of a file with several gets the field `channel`, its position in the file.

    Rejected are cuts of other types (mixed, padded), cuts without supervisions, supervisions of some of several
    channels, and recordings that are not plain files (a command is never executed) or have a transform other than
    resampling.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "cuts.jsonl"
    >>> source = {"type": "file", "channels": [0], "source": "r1.wav"}
    >>> cut = {"id": "c1", "start": 2.0, "channel": 0, "recording": {"id": "r1", "sources": [source]}}
    >>> cut["supervisions"] = [{"id": "s1", "start": 0.5, "duration": 1.5, "text": "hello"}]
    >>> _ = file.write_text(to_json(cut))
    >>> rows = read(file, Report(), {"dataset": "d", "split": "train", "task": "asr", "instruction": "Transcribe."})
    >>> [(row["id"], row["audio"], row["start"], row["duration"], row["target"]) for row in rows]
    [('c1', 'r1.wav', 2.5, 1.5, 'hello')]
    """
    return checked_rows(path, _supervisions(path), lambda pair: _row(*pair, report), report, defaults)


def write(rows: Iterable[Row], path: Path, report: Report) -> None:
    """Write one cut with one supervision per row; rate and length are read from the header of each file.

    Examples
    --------
    >>> import soundfile
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "1.wav", [0.0] * 800, 16000)
    >>> row = {"id": "1", "audio": "1.wav", "start": 0.0, "duration": None, "target": "hello", "task": "asr"}
    >>> write([row], folder / "cuts.jsonl", Report())
    >>> [(_, cut)] = json_lines(folder / "cuts.jsonl")
    >>> cut["duration"], cut["recording"]["num_samples"], cut["supervisions"][0]["text"], cut["custom"]
    (0.05, 800, 'hello', {'task': 'asr'})
    """
    with text_file(path) as file:
        for cut in target_entries(rows, lambda row: _cut(row, audio_path(path, row), report), report):
            file.write(to_json(cut) + "\n")


def _supervisions(path: Path) -> Iterator[tuple[str, Any]]:
    for number, cut in json_lines(path):
        supervisions = cut.get("supervisions") if isinstance(cut, dict) else None
        if isinstance(cut, FormatError):
            yield str(number), cut
        elif not isinstance(supervisions, list) or not supervisions:
            yield str(number), FormatError("is not a cut with supervisions; remove it, or give manifests of cuts")
        else:
            for index, supervision in enumerate(supervisions, start=1):
                label = str(number) if len(supervisions) == 1 else f"{number}, supervision {index}"
                yield label, (cut, supervision)


def _row(cut: dict[str, Any], supervision: dict[str, Any], report: Report) -> Row:
    if cut.get("type", "MonoCut") not in ("MonoCut", "MultiCut"):
        raise FormatError(f"is a {cut['type']}, which is not a segment of one file; save it as audio first")
    try:
        is_only_one = len(cut["supervisions"]) == 1
        row = {**(cut.get("custom") or {}), **(supervision.get("custom") or {})}
        row["id"] = cut["id"] if is_only_one else supervision["id"]
        row["audio"], channel = _file(cut["recording"], supervision.get("channel", cut["channel"]))
        if channel is not None:
            row["channel"] = channel
        # A supervision's start is relative to that of the cut.
        row["start"] = round(cut["start"] + supervision["start"], 8)
        row["duration"] = supervision["duration"]
    except (KeyError, TypeError) as error:
        raise FormatError(f"is not a cut as Lhotse writes it ({error!r}); write the cuts again") from error
    for name, lhotse_name in _SUPERVISION.items():
        if supervision.get(lhotse_name) is not None:
            row[name] = supervision[lhotse_name]
    report.lost.update(
        name for part in (cut, supervision) for name in ("features", "alignment") if part.get(name) is not None
    )
    return row


def _file(recording: dict[str, Any], channel: int | list[int]) -> tuple[str, int | None]:
    """Path of the recording's file, and the position of the channel in it; None: its only channel, or all of them.

    Raises FormatError if reading the file does not give these channels.
    """
    for transform in recording.get("transforms") or ():
        if transform.get("name") != _HARMLESS_TRANSFORM:
            raise FormatError(
                f"its audio is changed when it is read ({transform.get('name')}); save the cuts as audio first"
            )
    channels = channel if isinstance(channel, list) else [channel]
    source = next((source for source in recording["sources"] if channels[0] in source["channels"]), None)
    if source is None or source["type"] != "file":
        kind = "no source" if source is None else f'a source of type "{source["type"]}"'
        raise FormatError(f"recording {recording['id']} has {kind}, not a file; save the cuts as audio first")
    if sorted(source["channels"]) == sorted(channels):
        return source["source"], None
    if len(channels) != 1:
        raise FormatError(
            f"{source['source']} has channels {source['channels']}, and the supervision is of {channels}; "
            "write a supervision per channel"
        )
    return source["source"], source["channels"].index(channels[0])


def _cut(row: Row, audio: Path, report: Report) -> dict[str, Any]:
    rate, samples, channels = audio_header(audio)
    start = row["start"]
    duration = samples / rate - start if row["duration"] is None else row["duration"]
    # Without a channel, the model receives the mean of all, so the cut is of all.
    every = 0 if channels == 1 else list(range(channels))
    channel = every if row.get("channel") is None else row["channel"]
    if isinstance(channel, int) and channel >= channels:
        raise FormatError(f"{row['audio']} has {channels} channels, and none is channel {channel}; correct the field")
    supervision = {"id": row["id"], "recording_id": row["id"], "start": 0.0, "duration": duration, "channel": channel}
    custom = {}
    for name, value in row.items():
        if name in _SUPERVISION and isinstance(value, str):
            supervision[_SUPERVISION[name]] = value
        elif name not in ("id", "audio", "start", "duration", "channel"):
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
        "type": "MonoCut" if isinstance(channel, int) else "MultiCut",
    }
