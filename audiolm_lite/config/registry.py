"""Build a part of the system (encoder, adapter, ...) from the plain dictionary that names it.

A part is one file of a room of this package, `audiolm_lite/<room>/<type>.py`, whose constant `PART` is its class.
Configurations are data: they choose among the files that are there and can name no other code, so a downloaded model's
configuration never decides what runs.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from audiolm_lite.config.errors import ConfigError, did_you_mean


def part_types(room: str) -> list[str]:
    """Sorted names of the parts in `room`, which are the possible values of "type" there."""
    files = (Path(__file__).parent.parent / room).glob("*.py")
    return sorted(f.stem for f in files if re.search(r"^PART\b", f.read_text(encoding="utf-8"), re.MULTILINE))


def build(room: str, config: dict[str, Any], **extra: Any) -> Any:
    """Build the part that `config` describes.

    Parameters
    ----------
    room : str
        Folder of this package, for example "encoders".
    config : dict
        "type" names a file of the room; every other entry is an argument of its class.
    **extra
        What only the program knows (for example `feature_dim`); a part gets those that it has an argument for.

    Returns
    -------
    object
        An instance of the part's class.

    Raises
    ------
    ConfigError
        Unknown type, or an argument that is unknown, missing or set by the program.
    """
    if not isinstance(config, dict) or not isinstance(config.get("type"), str):
        raise ConfigError(f'{room}: expected a mapping with an entry "type", one of {part_types(room)}; got {config!r}')
    kind = config["type"]
    if kind not in part_types(room):
        raise ConfigError(f"{room}: unknown type {kind!r}{did_you_mean(kind, part_types(room))}")
    part = importlib.import_module(f"audiolm_lite.{room}.{kind}").PART
    parameters = inspect.signature(part).parameters
    arguments = {name: value for name, value in config.items() if name != "type"}
    offered = {name: value for name, value in extra.items() if name in parameters}

    where, free = f"{room}, type {kind!r}", [name for name in parameters if name not in offered]
    for name in arguments:
        if name in offered:
            raise ConfigError(f"{where}: argument {name!r} is set by the program; remove it from the configuration")
        if name not in parameters:
            raise ConfigError(f"{where}: unknown argument {name!r}{did_you_mean(name, free)}")
    for name in free:
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise ConfigError(f"{where}: argument {name!r} is missing; it takes {free}")
    return part(**arguments, **offered)


def with_defaults(room: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's configuration with the defaults of the arguments that it leaves out."""
    part = importlib.import_module(f"audiolm_lite.{room}.{config['type']}").PART
    parameters = inspect.signature(part).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty} | dict(config)


def map_sources(config: Mapping[str, Any], change: Callable[[str, str], str], where: str) -> dict[str, Any]:
    """Copy a part's configuration with every pretrained model that it names, also inside parts of it, changed.

    `change` gets a `source` and the path of the mapping that has it ("encoder", "encoder/encoders/speech").
    """
    changed = dict(config)
    for name, value in config.items():
        if isinstance(value, Mapping):
            changed[name] = map_sources(value, change, f"{where}/{name}")
        elif name == "source" and isinstance(value, str):
            changed[name] = change(value, where)
    return changed


def sources(config: Mapping[str, Any]) -> list[str]:
    """Every pretrained model that a part's configuration names."""
    found: list[str] = []

    def keep(source: str, _: str) -> str:
        found.append(source)
        return source

    map_sources(config, keep, "")
    return found
