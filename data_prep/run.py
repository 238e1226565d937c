"""The prepare command: manifests and, with an encoder, features of the corpus that a YAML file names.

Every recipe's prepare.py calls `main`. A recipe that generates its data (MiniASQA) has its own.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from audiolm_lite.config.command_line import parse_arguments
from audiolm_lite.config.errors import ConfigError, run_command
from audiolm_lite.config.experiment import load_experiment
from audiolm_lite.config.keys import Key
from audiolm_lite.config.start import start_run
from data_prep.clips import Clip
from data_prep.prepare import PREPARE_KEYS, prepare

_EXAMPLE = "corpus: !name:data_prep.corpora.librispeech.read_librispeech"


def main(argv: Sequence[str]) -> int:
    """Prepare the corpus of `FILE.yaml --key value ...`.

    Parameters
    ----------
    argv : sequence of str
        Command line. `FILE.yaml --help` also lists the keys of the file's corpus.

    Returns
    -------
    int
        Exit status of `data_prep.prepare.prepare`.

    Raises
    ------
    ConfigError
        The file names no reader, a key is unknown, missing or of the wrong type, or the reader has an argument
        without a key.
    CorpusError
        The corpus is incomplete or not in its format, or too many of its clips were rejected.
    """
    hparams, run_opts, resolved = load_experiment(argv, command_keys(argv))
    start_run(hparams, resolved)
    return prepare(read_clips(hparams["corpus"], hparams), hparams, run_opts)


def command_keys(argv: Sequence[str]) -> dict[str, Key]:
    """Documented keys of a command: those of every preparation and those of the reader that its YAML file names.

    The keys of a reader are the constant `KEYS` of its module.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "prepare.yaml"
    >>> _ = file.write_text("corpus: !name:data_prep.corpora.librispeech.read_librispeech\\n")
    >>> sorted(command_keys([str(file)]).keys() - PREPARE_KEYS.keys())
    ['data_folder', 'subsets']
    """
    words = [word for word in argv if word not in ("--help", "-h")]
    if not words:
        return PREPARE_KEYS
    path, _, _ = parse_arguments(words, PREPARE_KEYS)
    named = re.search(r"^corpus:\s*!name:([\w.]+)\.\w+", path.read_text(encoding="utf-8"), re.MULTILINE)
    if named is None:
        raise ConfigError(
            f'{path}: no key "corpus", which names the reader; add a line such as "{_EXAMPLE}", '
            "or run the prepare.py next to the file if the recipe has its own"
        )
    try:
        module = importlib.import_module(named[1])
    except ImportError as error:
        raise ConfigError(f"{path}: corpus: cannot import {named[1]} ({error}); correct the name") from error
    return {**PREPARE_KEYS, **getattr(module, "KEYS", {})}


def read_clips(reader: Callable[..., Iterable[Clip]], values: Mapping[str, Any]) -> Iterable[Clip]:
    """Call a reader; each of its arguments gets the value of the key with the same name.

    Parameters
    ----------
    reader : callable
        Returns clips. One with a `**` argument gets all values.
    values : mapping
        Key -> value.

    Raises
    ------
    ConfigError
        An argument without default has no key.

    Examples
    --------
    >>> read_clips(lambda data_folder, seed=0: f"{data_folder} with seed {seed}", {"data_folder": "/an4", "epochs": 2})
    '/an4 with seed 0'
    """
    parameters = inspect.signature(reader).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return reader(**values)
    arguments = {parameter.name: values[parameter.name] for parameter in parameters if parameter.name in values}
    for parameter in parameters:
        if parameter.default is inspect.Parameter.empty and parameter.name not in arguments:
            raise ConfigError(f"corpus: argument {parameter.name!r} of the reader has no key; add it to its KEYS")
    return reader(**arguments)


if __name__ == "__main__":
    run_command(main)
