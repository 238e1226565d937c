"""Experiment files: a HyperPyYAML file and the overrides of the command line become checked hyperparameters.

A key that is neither documented nor referred to in the file is an error, so a typing error never passes unnoticed.
"""

import io
import os
import re
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references

from audiolm_lite.config.command_line import Replacement, help_text, parse_arguments
from audiolm_lite.config.errors import ConfigError, describe, did_you_mean
from audiolm_lite.config.keys import NULLABLE, OPTIONAL_ENTRIES, REQUIRED, RUN_OPTIONS, TRAINING_KEYS, Key
from audiolm_lite.config.launch import accelerate_options
from audiolm_lite.config.start import check_device


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
    SystemExit
        `--help` was given and printed.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "search.yaml"
    >>> _ = file.write_text("penalty: 0.1")
    >>> keys = {"penalty": Key("Length penalty.", float), "beams": Key("Beams of the search.", int, 4)}
    >>> hparams, run_opts, _ = load_experiment([str(file), "--penalty", "0.2", "--device", "cpu"], keys)
    >>> hparams, run_opts
    ({'penalty': 0.2, 'beams': 4}, {'device': 'cpu'})
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(keys))
        raise SystemExit(0)
    path, overrides, run_opts = parse_arguments(argv, keys)
    if "device" in run_opts:
        check_device(run_opts["device"])
    if keys is TRAINING_KEYS:
        overrides = {**accelerate_options(os.environ), **overrides}
    stream = _overridden_yaml(path, overrides, keys)
    try:
        resolved = resolve_references(stream).getvalue()
        hparams = load_hyperpyyaml(resolved)
    except (ValueError, ImportError, OSError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: {describe(error)}; correct it there or with an option (--key value)") from error
    except ruamel.yaml.error.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{path}: {' '.join(str(problem).split())}") from error
    return _checked(path, hparams, keys), run_opts, resolved


def _overridden_yaml(path: Path, overrides: dict, keys: Mapping[str, Key]) -> io.StringIO:
    """Read the file, check its top-level keys and those of the overrides, and apply the overrides."""
    yaml = ruamel.yaml.YAML()
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(text) or ruamel.yaml.comments.CommentedMap()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error}); give a YAML file") from error
    except ruamel.yaml.error.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {' '.join(str(error.problem).split())}") from error
    if not isinstance(tree, MutableMapping):
        raise ConfigError(f"{path}: a YAML file of this command has keys and values, such as seed: 3")
    referenced = {match.split("[")[0].split(".")[0] for match in re.findall(r"<([^<>\s]+)>", text)}
    for name in tree:
        if name not in keys and name not in referenced and not str(name).startswith("_"):
            suggestion = did_you_mean(name, [*keys, *referenced])
            raise ConfigError(f"{path}: unknown key {name!r}{suggestion} --help lists all keys")
    for name in overrides:
        if name not in keys and name not in tree:
            suggestion = did_you_mean(name, [*keys, *RUN_OPTIONS, *tree])
            raise ConfigError(f"unknown option --{name}{suggestion} --help lists all options")
    _update(tree, overrides)
    stream = io.StringIO()
    yaml.dump(tree, stream)
    stream.seek(0)
    stream.name = str(path)  # `!include` is relative to the file
    return stream


def _update(tree: MutableMapping, overrides: Mapping, included: str = "") -> None:
    """Merge nested overrides into a YAML tree in place; an `!include` node takes them as its own overrides.

    `included` is the `!include` tag of the node that `tree` belongs to, if any.
    """
    for name, value in overrides.items():
        if isinstance(value, Replacement):
            if included and isinstance(value.value, Mapping):
                raise ConfigError(
                    f"option {name}:= cannot replace a mapping within {included}; replace the complete block with :="
                )
            tree[name] = value.value
        elif isinstance(value, Mapping) and (name in tree or included):
            node = tree.get(name)
            tag = included
            if not isinstance(node, Mapping):
                own = getattr(getattr(node, "tag", None), "value", None) or ""
                tree[name] = ruamel.yaml.comments.CommentedMap()
                if own.startswith("!include:"):
                    tree[name].yaml_set_ctag(ruamel.yaml.Tag(suffix=own))
                    tag = own
            _update(tree[name], value, tag)
        else:
            tree[name] = value


def _checked(path: Path, hparams: dict, keys: Mapping[str, Key]) -> dict:
    """Return the hyperparameters with defaults filled in; raise ConfigError where a type or choice is wrong."""
    checked = dict(hparams)
    for name, key in keys.items():
        value = checked.setdefault(name, key.default)
        if value is REQUIRED:
            raise ConfigError(f"{path}: key {name!r} is missing ({key.help}) Add it, or give --{name} VALUE")
        if value is None and key.default is None:
            continue
        if name in OPTIONAL_ENTRIES and isinstance(value, Mapping):
            values = NULLABLE if name == "generation" else ()
            checked[name] = value = {k: v for k, v in value.items() if v is not None or k in values}
        if isinstance(key.kind, tuple):
            if value not in key.kind:
                raise ConfigError(f"{path}: {name} is {value!r}; choose one of {', '.join(key.kind)}")
        elif key.kind is float and type(value) is int:
            checked[name] = float(value)
        elif not isinstance(value, key.kind) or (key.kind is int and isinstance(value, bool)):
            raise ConfigError(f"{path}: {name} is {value!r}; it must be of type {key.kind.__name__} ({key.help})")
        _check_range(path, name, checked[name], key)
    return checked


def _check_range(path: Path, name: str, value: Any, key: Key) -> None:
    """Raise ConfigError for a number out of range, an entry of another type, or a folder without a name."""
    if key.least is not None and value < key.least:
        raise ConfigError(f"{path}: {name} is {value}; it must be at least {key.least} ({key.help})")
    if type(value) is int and abs(value) >= 2**63:
        raise ConfigError(f"{path}: {name} is {value}; it must have at most 64 bits")
    wrong = [entry for entry in value if not isinstance(entry, key.entries)] if key.entries else []
    if wrong:
        raise ConfigError(f"{path}: {name} has the entry {wrong[0]!r}, which is not of the right type ({key.help})")
    if value == "" and name.endswith(("_folder", "_root")):
        raise ConfigError(f"{path}: {name} is empty; name a folder, such as .")
