"""The command line of every recipe script: FILE.yaml, overrides of its keys, and run options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ruamel.yaml

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.keys import OPTIONAL_ENTRIES, REQUIRED, RUN_OPTIONS, STAGES_OPTION, TRAINING_KEYS, Key


class Replacement(NamedTuple):
    """The value of an option `--key:=VALUE`, which replaces what the file has instead of being merged with it."""

    value: Any


def parse_arguments(
    argv: Sequence[str], keys: Mapping[str, Key] = TRAINING_KEYS
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Split a command line into the YAML file, nested overrides and run options.

    Parameters
    ----------
    argv : sequence of str
        `FILE.yaml --key value --block.key=value --block:={key: value} --device cpu --debug ...`
    keys : mapping
        The documented keys: a value of a string key is taken as it is, every other value is read as YAML.

    Returns
    -------
    path : Path
    overrides : dict
        Values by key; a dotted option gives nested mappings, and `:=` a `Replacement`.
    run_opts : dict
        Values of `RUN_OPTIONS`.

    Raises
    ------
    ConfigError
        No file, no such file, more than one file, an option without a value, or a value that is not valid YAML.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "stage_1.yaml"
    >>> file.touch()
    >>> argv = [str(file), "--lr", "1e-4", "--adapter.stride=2", "--device", "cpu"]
    >>> _, overrides, run_opts = parse_arguments(argv)
    >>> overrides, run_opts
    ({'lr': 0.0001, 'adapter': {'stride': 2}}, {'device': 'cpu'})
    """
    path: Path | None = None
    overrides: dict[str, Any] = {}
    run_opts: dict[str, Any] = {}
    remaining = list(argv)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            if path is not None:
                raise ConfigError(f"unexpected argument {word!r} after {path}: options are written --key value")
            path = Path(word)
            continue
        name, equals, value = word[2:].partition("=")
        if name == "debug" and not equals:
            run_opts["debug"] = True
            continue
        if not equals:
            if not remaining:
                raise ConfigError(f"option --{name} has no value: write --{name} VALUE")
            value = remaining.pop(0)
        if name in RUN_OPTIONS:
            run_opts[name] = _from_yaml(name, value) if name == "debug" else value
            continue
        replaces = bool(equals) and name.endswith(":")
        *blocks, last = name.removesuffix(":").split(".") if replaces else name.split(".")
        target = overrides
        for block in blocks:
            target = target.setdefault(block, {})
            if not isinstance(target, dict):
                raise ConfigError(f"option --{name}: another option sets all of {block}; give one of the two")
        is_text = not blocks and last in keys and keys[last].kind is str and value != "null"
        target[last] = value if is_text else _from_yaml(name, value)
        if replaces:
            target[last] = Replacement(target[last])
    if path is None:
        raise ConfigError("no YAML file given; give one, such as hparams/stage_1.yaml. --help lists all options")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give the YAML file of the recipe, e.g. hparams/stage_1.yaml")
    return path, overrides, run_opts


def help_text(keys: Mapping[str, Key]) -> str:
    """Describe the command line: run options and documented keys with their defaults.

    Examples
    --------
    >>> help_text({"beams": Key("Beams of the search.", int, 4)}).splitlines()[-1].split(maxsplit=2)
    ['--beams', 'int', 'Beams of the search. [default 4]']
    """
    lines = ["usage: python SCRIPT.py FILE.yaml [--key value ...]", "", "run options:"]
    options = {**RUN_OPTIONS, **(STAGES_OPTION if keys is TRAINING_KEYS else {})}
    lines += [f"  {f'--{name} {value}':<34} {text}" for name, (value, text) in options.items()]
    lines += ["", "keys of the YAML file, each also an option (--key value, --block.key value):"]
    lines += ["  A mapping is merged with that of the file; --key:={...} replaces it. null removes an entry of"]
    lines += [f"  {', '.join(OPTIONAL_ENTRIES)}: --learning_rates='{{\"llm.*\": null}}'.", ""]
    for name, key in keys.items():
        kind = "|".join(key.kind) if isinstance(key.kind, tuple) else key.kind.__name__
        default = "required" if key.default is REQUIRED else f"default {key.default}"
        lines.append(f"  {f'--{name} {kind}':<34} {key.help} [{default}]")
    return "\n".join(lines)


def _from_yaml(name: str, text: str) -> Any:
    try:
        return ruamel.yaml.YAML(typ="safe").load(text)
    except ruamel.yaml.error.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"option --{name}: {text!r} is not valid YAML ({problem}); quote text in it") from error
