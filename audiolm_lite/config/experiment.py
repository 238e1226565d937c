"""From a command line to checked hyperparameters: HyperPyYAML file + `--key value` overrides + run options.

A key that nothing documents and nothing refers to is an error, so a typo cannot pass silently.
"""

import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references

from audiolm_lite.config.errors import ConfigError, did_you_mean
from audiolm_lite.config.keys import REQUIRED, RUN_OPTIONS, STAGES_OPTION, TRAINING_KEYS, Key
from audiolm_lite.config.launch import accelerate_options
from audiolm_lite.config.manifest_entries import split_entries
from audiolm_lite.config.registry import map_sources


def load_experiment(argv: Sequence[str], keys: Mapping[str, Key] = TRAINING_KEYS) -> tuple[dict, dict, str]:
    """Parse `FILE.yaml --key value ...` and check every key; nothing is started and nothing is written.

    Parameters
    ----------
    argv : sequence of str
        Command line without the program's name. `--adapter.time_heads 2` sets an entry of a block.
    keys : mapping
        The documented keys. A file may also have keys that another line refers to with `!ref <key>`, and keys that
        start with "_".

    Returns
    -------
    hparams : dict
        Every documented key, with defaults filled in, and the file's helper keys.
    run_opts : dict
        `device` and `debug`, where the command line gives them.
    resolved : str
        The YAML text with all references resolved.

    Raises
    ------
    ConfigError
        Unknown key, missing key or wrong type; the message names file, key and remedy.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(keys))
        raise SystemExit(0)
    path, overrides, run_opts = parse_arguments(argv, keys)
    if keys is TRAINING_KEYS:
        overrides = {**accelerate_options(os.environ), **overrides}
    stream = _overridden_yaml(path, overrides, keys)
    try:
        resolved = resolve_references(stream).getvalue()
        hparams = load_hyperpyyaml(resolved)
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise ConfigError(f"{path}: {error} Give it in the file or on the command line (--key value).") from error
    return _check_values(path, hparams, keys), run_opts, resolved


def help_text(keys: Mapping[str, Key]) -> str:
    """Describe the command line: run options and documented keys with their defaults."""
    lines = ["usage: python SCRIPT.py FILE.yaml [--key value ...]", "", "run options:"]
    options = {**RUN_OPTIONS, **(STAGES_OPTION if keys is TRAINING_KEYS else {})}
    lines += [f"  {f'--{name} {value}':<34} {text}" for name, (value, text) in options.items()]
    lines += ["", "keys of the YAML file, each also an option (--key value, --block.key value):"]
    for name, key in keys.items():
        kind = "|".join(key.kind) if isinstance(key.kind, tuple) else key.kind.__name__
        default = "required" if key.default is REQUIRED else f"default {key.default}"
        lines.append(f"  {f'--{name} {kind}':<34} {key.help} [{default}]")
    return "\n".join(lines)


def settings(hparams: Mapping, keys: Mapping[str, Key] = TRAINING_KEYS) -> dict:
    """Return the values that decide which model comes out: what a run may be resumed or reused with."""
    plain = {name: hparams[name] for name, key in keys.items() if key.result and name in hparams}
    if "mixing_temperature" in plain:  # the manifests themselves may move, but another mixture of them is another run
        plain["manifest weights"] = split_entries(hparams["manifests"].get("train", []))[1]
    return {name: _comparable(value) for name, value in plain.items()}


def _comparable(value: Any) -> Any:
    """As it is compared between runs: a class by its name, a local source by its full path, whatever the directory."""
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


def parse_arguments(argv: Sequence[str], keys: Mapping[str, Key] = TRAINING_KEYS) -> tuple[Path, dict, dict]:
    """Split the command line into file, nested overrides and run options."""
    path, overrides, run_opts = None, {}, {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
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
            if not rest:
                raise ConfigError(f"option --{name} has no value: write --{name} VALUE")
            value = rest.pop(0)
        if name in RUN_OPTIONS:
            run_opts[name] = ruamel.yaml.YAML(typ="safe").load(value) if name == "debug" else value
            continue
        *blocks, last = name.split(".")
        place = overrides
        for block in blocks:
            place = place.setdefault(block, {})
        text = not blocks and last in keys and keys[last].kind is str and value != "null"
        place[last] = value if text else ruamel.yaml.YAML(typ="safe").load(value)
    if path is None:
        raise ConfigError(f"no YAML file given\n{help_text(keys)}")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give the YAML file of the recipe, e.g. hparams/stage_1.yaml")
    return path, overrides, run_opts


def _overridden_yaml(path: Path, overrides: dict, keys: Mapping[str, Key]) -> io.StringIO:
    """Read the file, check its top-level keys and those of the overrides, and apply the overrides."""
    yaml = ruamel.yaml.YAML()
    text = path.read_text(encoding="utf-8")
    try:
        tree = yaml.load(text) or ruamel.yaml.comments.CommentedMap()
    except ruamel.yaml.error.MarkedYAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    referenced = {match.split("[")[0].split(".")[0] for match in re.findall(r"<([^<>\s]+)>", text)}
    for name in tree:
        if name not in keys and name not in referenced and not str(name).startswith("_"):
            raise ConfigError(f"{path}: unknown key {name!r}{did_you_mean(name, [*keys, *referenced])}")
    for name in overrides:
        if name not in keys and name not in tree:
            raise ConfigError(f"unknown option --{name}{did_you_mean(name, [*keys, *RUN_OPTIONS, *tree])}")
    _update(tree, overrides)
    stream = io.StringIO()
    yaml.dump(tree, stream)
    stream.seek(0)
    stream.name = str(path)  # `!include` is relative to the file
    return stream


def _update(tree: Mapping, overrides: Mapping) -> None:
    """Merge nested overrides into a YAML tree in place; an `!include` node takes them as its own overrides."""
    for name, value in overrides.items():
        if isinstance(value, Mapping) and name in tree:
            node = tree[name]
            if not isinstance(node, Mapping):
                tag = getattr(node, "tag", None)
                tree[name] = ruamel.yaml.comments.CommentedMap()
                if tag is not None and (tag.value or "").startswith("!include:"):
                    tree[name].yaml_set_ctag(ruamel.yaml.Tag(suffix=tag.value))
            _update(tree[name], value)
        else:
            tree[name] = value


def _check_values(path: Path, hparams: dict, keys: Mapping[str, Key]) -> dict:
    """Fill defaults and check types."""
    checked = dict(hparams)
    for name, key in keys.items():
        value = checked.setdefault(name, key.default)
        if value is REQUIRED:
            raise ConfigError(f"{path}: key {name!r} is missing ({key.help}) Add it, or give --{name} VALUE")
        if value is None and key.default is None:
            continue
        if isinstance(key.kind, tuple):
            if value not in key.kind:
                raise ConfigError(f"{path}: {name} is {value!r}; choose one of {', '.join(key.kind)}")
        elif key.kind is float and type(value) is int:
            checked[name] = float(value)
        elif not isinstance(value, key.kind) or (key.kind is int and isinstance(value, bool)):
            raise ConfigError(f"{path}: {name} is {value!r}; it must be of type {key.kind.__name__} ({key.help})")
    return checked
