"""Keys of the feature store: the clips of a manifest row and the key of each."""

from collections.abc import Mapping
from typing import Any


def feature_key(row: Mapping[str, Any]) -> str:
    """Return the key of a row's features: its audio path, followed by `#start+duration` for a segment of the file.

    Examples
    --------
    >>> feature_key({"audio": "a.flac"}), feature_key({"audio": "a.flac", "start": 1.5, "duration": 2})
    ('a.flac', 'a.flac#1.5+2.0')
    """
    start, duration = float(row.get("start", 0.0)), row.get("duration")
    if start == 0 and duration is None:
        return row["audio"]
    return f"{row['audio']}#{start}+{'' if duration is None else float(duration)}"


def clips_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all clips of a row as {audio, start, duration}: its own, then those of `further_audio`.

    Examples
    --------
    >>> clips_of({"audio": "a.flac", "duration": 2.0, "further_audio": [{"audio": "b.flac"}]})
    [{'audio': 'a.flac', 'start': 0.0, 'duration': 2.0}, {'audio': 'b.flac', 'start': 0.0, 'duration': None}]
    """
    return [
        {"audio": clip["audio"], "start": clip.get("start", 0.0), "duration": clip.get("duration")}
        for clip in (row, *row.get("further_audio", ()))
    ]
