"""Keys of the feature store: which clip of a manifest row has which key."""

from typing import Any


def feature_key(row: dict[str, Any]) -> str:
    """Key of a manifest row's features: its audio path, followed by `#start+duration` where it is a segment."""
    start, duration = float(row.get("start", 0.0)), row.get("duration")
    if start == 0 and duration is None:
        return row["audio"]
    return f"{row['audio']}#{start}+{'' if duration is None else float(duration)}"


def clips_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """All clips of a manifest row in reading order, as {audio, start, duration}: its own, then `further_audio`."""
    return [
        {"audio": clip["audio"], "start": clip.get("start", 0.0), "duration": clip.get("duration")}
        for clip in (row, *row.get("further_audio", ()))
    ]
