"""Entries of a YAML list of manifests: paths, with or without a weight."""

from collections.abc import Mapping, Sequence
from typing import Any

from audiolm_lite.config.errors import ConfigError


def split_entries(entries: Sequence[str | Mapping[str, Any]]) -> tuple[list[str], list[float] | None]:
    """Paths and weights of a YAML list of manifests, whose entries are paths or `{path: ..., weight: ...}`.

    Returns
    -------
    paths : list of str
    weights : list of float or None
        None where no entry has one.

    Raises
    ------
    ConfigError
        An entry has another form, or some have a weight and others none.
    """
    paths, weights = [], []
    for entry in entries:
        if isinstance(entry, Mapping):
            weight = entry.get("weight")
            if set(entry) != {"path", "weight"} or not isinstance(weight, (int, float)) or isinstance(weight, bool):
                raise ConfigError(f"manifests: {dict(entry)} is no entry; write a path, or {{path: ..., weight: 2}}.")
            weights.append(float(weight))
            entry = entry["path"]
        if not isinstance(entry, str):
            raise ConfigError(f"manifests: {entry!r} is no path; write a path, or {{path: ..., weight: 2}}.")
        paths.append(entry)
    if weights and len(weights) < len(paths):
        raise ConfigError("manifests: some have a weight and others none; give each one its weight, or none of them.")
    return paths, weights or None
