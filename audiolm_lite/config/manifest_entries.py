"""Entries of a YAML list of manifests: paths, with or without a weight."""

from collections.abc import Mapping, Sequence
from typing import Any

from audiolm_lite.config.errors import ConfigError


def split_entries(entries: Sequence[str | Mapping[str, Any]]) -> tuple[list[str], list[float] | None]:
    """Split a YAML list of manifests into paths and weights; an entry is a path or `{path: ..., weight: ...}`.

    Returns
    -------
    paths : list of str
    weights : list of float or None
        None if no entry has a weight.

    Raises
    ------
    ConfigError
        An entry has another form, or only some entries have a weight.

    Examples
    --------
    >>> split_entries([{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 1}])
    (['a.jsonl', 'b.jsonl'], [2.0, 1.0])
    """
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(f"manifests: {entries!r} is not a list; write [path, ...] under train, valid and test")
    paths, weights = [], []
    for entry in entries:
        if isinstance(entry, Mapping):
            weight = entry.get("weight")
            if set(entry) != {"path", "weight"} or not isinstance(weight, (int, float)) or isinstance(weight, bool):
                raise ConfigError(f"manifests: {dict(entry)} is no entry; write a path, or {{path: ..., weight: 2}}.")
            weights.append(float(weight))
            entry = entry["path"]
        if not isinstance(entry, str):
            raise ConfigError(f"manifests: {entry!r} is not a path; write a path, or {{path: ..., weight: 2}}.")
        paths.append(entry)
    if weights and len(weights) < len(paths):
        raise ConfigError("manifests: only some have a weight; give every manifest a weight, or none.")
    return paths, weights or None
