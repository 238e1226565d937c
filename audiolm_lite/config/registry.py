"""Registry of encoders and adapters: builds one from the plain dictionary that names it.

A component is one file of a package, `audiolm_lite/<package>/<type>.py`, whose constant `COMPONENT` is its class. A
configuration is data: it selects one of these files and cannot name other code, so the configuration of a downloaded
model never decides what is executed.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from audiolm_lite.config.errors import ConfigError, did_you_mean, errors_about


def component_types(package: str) -> list[str]:
    """Sorted names of the components in `package`, which are the possible values of "type".

    Examples
    --------
    >>> "tltr" in component_types("adapters")
    True
    """
    files = (Path(__file__).parent.parent / package).glob("*.py")
    return sorted(f.stem for f in files if re.search(r"^COMPONENT\b", f.read_text(encoding="utf-8"), re.MULTILINE))


def build(package: str, config: dict[str, Any], **extra: Any) -> Any:
    """Build the component that `config` describes.

    Parameters
    ----------
    package : str
        Package of audiolm_lite, for example "encoders".
    config : dict
        "type" names a file of the package; every other entry is an argument of its class.
    **extra
        Arguments that only the program knows (for example `feature_dim`). A component gets those that its class has.

    Returns
    -------
    object
        An instance of the component's class.

    Raises
    ------
    ConfigError
        Unknown type, an argument that is unknown, missing or set by the program, or a value that the class refuses.

    Examples
    --------
    >>> adapter = build("adapters", {"type": "linear", "stride": 2}, feature_dim=8, num_layers=1, llm_dim=16)
    >>> adapter.num_tokens(50)
    25
    """
    component = check_arguments(package, config, tuple(extra))
    arguments = {argument: value for argument, value in config.items() if argument != "type"}
    parameters = inspect.signature(component).parameters
    set_by_program = {argument: value for argument, value in extra.items() if argument in parameters}
    with errors_about(f"{package}, type {config['type']!r}, {_listed(arguments)}"):
        return component(**arguments, **set_by_program)


def check_arguments(package: str, config: Mapping[str, Any], extra: Sequence[str] = ()) -> type:
    """Check the names in a component's configuration, and return its class.

    Parameters
    ----------
    package : str
        Package of audiolm_lite.
    config : mapping
        As in `build`.
    extra : sequence of str
        Arguments that the program sets.

    Raises
    ------
    ConfigError
        As in `build`, except for values that the class refuses.

    Examples
    --------
    >>> check_arguments("adapters", {"type": "linear", "strid": 2}, ["feature_dim", "num_layers", "llm_dim"])
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: adapters, type 'linear': unknown argument 'strid'; did you mean ...
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("type"), str):
        known = component_types(package)
        raise ConfigError(f'{package}: expected a mapping with an entry "type", one of {known}; got {config!r}')
    name = config["type"]
    if name not in component_types(package):
        raise ConfigError(f"{package}: unknown type {name!r}{did_you_mean(name, component_types(package))}")
    component = importlib.import_module(f"audiolm_lite.{package}.{name}").COMPONENT
    parameters = inspect.signature(component).parameters
    where = f"{package}, type {name!r}"
    accepted = [argument for argument in parameters if argument not in extra]
    for argument in config:
        if argument == "type":
            continue
        if argument in extra and argument in parameters:
            raise ConfigError(f"{where}: argument {argument!r} is set by the program; remove it from the configuration")
        if argument not in parameters:
            raise ConfigError(f"{where}: unknown argument {argument!r}{did_you_mean(argument, accepted)}")
    for argument in accepted:
        if parameters[argument].default is inspect.Parameter.empty and argument not in config:
            raise ConfigError(f"{where}: argument {argument!r} is missing; it takes {accepted}")
    return component


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value!r:.60}" for name, value in arguments.items()) or "all arguments by default"


def with_defaults(package: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a component's configuration with the defaults of the arguments that it leaves out.

    Examples
    --------
    >>> with_defaults("adapters", {"type": "linear", "stride": 2})
    {'stride': 2, 'hidden_dim': 2048, 'conv': False, 'type': 'linear'}
    """
    component = importlib.import_module(f"audiolm_lite.{package}.{config['type']}").COMPONENT
    parameters = inspect.signature(component).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty} | dict(config)


def map_sources(config: Mapping[str, Any], change: Callable[[str, str], str], where: str) -> dict[str, Any]:
    """Copy a component's configuration and change every pretrained model that it names, at any depth.

    Parameters
    ----------
    config : mapping
        The configuration; pretrained models are the entries `source`, and `tokenizer` next to one.
    change : callable
        Gets a `source` and the path of the mapping that has it ("encoder", "encoder/encoders/speech"), or a `tokenizer`
        and its own path ("llm/tokenizer"); returns the new one.
    where : str
        Path of `config` itself.

    Examples
    --------
    >>> map_sources({"type": "whisper", "source": "tiny"}, lambda source, where: f"openai/whisper-{source}", "encoder")
    {'type': 'whisper', 'source': 'openai/whisper-tiny'}
    """
    changed = dict(config)
    for name, value in config.items():
        if isinstance(value, Mapping):
            changed[name] = map_sources(value, change, f"{where}/{name}")
        elif name == "source" and isinstance(value, str):
            changed[name] = change(value, where)
        elif name == "tokenizer" and isinstance(value, str) and "source" in config:
            changed[name] = change(value, f"{where}/tokenizer")
    return changed


def sources(config: Mapping[str, Any]) -> list[str]:
    """List every pretrained model that a component's configuration names.

    Examples
    --------
    >>> speech = {"type": "whisper", "source": "openai/whisper-tiny"}
    >>> sources({"type": "fused", "encoders": {"speech": speech, "sound": {"type": "beats", "source": "BEATs.pt"}}})
    ['openai/whisper-tiny', 'BEATs.pt']
    """
    named: list[str] = []

    def keep(source: str, _: str) -> str:
        named.append(source)
        return source

    map_sources(config, keep, "")
    return named
