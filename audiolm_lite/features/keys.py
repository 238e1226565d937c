"""Keys of the feature store: the clips of a manifest row and the key of each."""

from collections.abc import Mapping
from typing import Any


def feature_key(row: Mapping[str, Any]) -> str:
    """Return the key of a row's features: its audio path, with `#start+duration` for a segment and `#channel=n`.

    Examples
    --------
    >>> feature_key({"audio": "a.flac", "duration": 2, "channel": 1})
    'a.flac#0.0+2.0#channel=1'
    >>> feature_key({"audio": "a.flac"}), feature_key({"audio": "a.flac", "start": 1.5, "duration": 2})
    ('a.flac', 'a.flac#1.5+2.0')
    """
    start, duration, channel = float(row.get("start", 0.0)), row.get("duration"), row.get("channel")
    segment = "" if start == 0 and duration is None else f"#{start}+{'' if duration is None else float(duration)}"
    return row["audio"] + segment + ("" if channel is None else f"#channel={channel}")


def clips_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all clips of a row as {audio, start, duration}, with `channel` where it is given.

    The first is the row's own, the others are those of `further_audio`.

    Examples
    --------
    >>> clips_of({"audio": "a.flac", "duration": 2.0, "further_audio": [{"audio": "b.flac"}]})
    [{'audio': 'a.flac', 'start': 0.0, 'duration': 2.0}, {'audio': 'b.flac', 'start': 0.0, 'duration': None}]
    """
    return [
        {"audio": clip["audio"], "start": clip.get("start", 0.0), "duration": clip.get("duration")}
        | ({} if clip.get("channel") is None else {"channel": clip["channel"]})
        for clip in (row, *row.get("further_audio", ()))
    ]
