"""The settings of a run that decide its result, in a form that can be compared with those of another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.config.keys import TRAINING_KEYS, Key
from audiolm_lite.config.manifest_entries import split_entries
from audiolm_lite.config.registry import map_sources


def settings(hparams: Mapping, keys: Mapping[str, Key] = TRAINING_KEYS) -> dict[str, Any]:
    """Return the values that decide which model results: those that a resumed or reused run must share.

    Parameters
    ----------
    hparams : mapping
        Loaded keys.
    keys : mapping
        The documented keys; those with `result=False` are left out.

    Examples
    --------
    >>> keys = {"seed": Key("Seed.", int), "log_every": Key("Steps between log lines.", int, result=False)}
    >>> settings({"seed": 3, "log_every": 10}, keys)
    {'seed': 3}
    """
    values = {name: hparams[name] for name, key in keys.items() if key.result and name in hparams}
    if "mixing_temperature" in values:  # the manifests may move, but another mixture of them is another run
        values["manifest weights"] = split_entries(hparams["manifests"].get("train", []))[1]
    return {name: _comparable(value) for name, value in values.items()}


def _comparable(value: Any) -> Any:
    """Replace a class by its name and a local source by its full path, which no working directory changes."""
    if callable(value):
        return _qualified_name(value)
    if isinstance(value, Mapping):
        return map_sources(value, _full_path, "")
    return value


def _full_path(source: str, where: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _qualified_name(value: Any) -> str:
    value = getattr(value, "func", value)  # `!name:` with arguments gives a functools.partial
    return f"{value.__module__}.{value.__qualname__}"
