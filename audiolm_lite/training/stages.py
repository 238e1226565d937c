"""Several stages by one command: python train.py hparams/stage_1.yaml --stages 1-3"""

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.command_line import parse_arguments
from audiolm_lite.config.experiment import load_experiment

# What belongs to one stage, and can therefore not be said of several at once.
OF_ONE_STAGE = ("stage", "output_folder", "previous_stage")


def stage_commands(argv: Sequence[str]) -> Iterator[list[str]]:
    """Command line of each stage that `--stages FIRST-LAST` names; without it, the one that was given.

    The file given is a pattern: the others are its neighbours whose names end in another number. All are read and
    checked before the first stage begins, and what a stage has left in memory is freed before the next one.

    Raises
    ------
    ConfigError
        A file is missing or wrong, the range is none, or an option belongs to one stage.
    """
    place = next((i for i, word in enumerate(argv) if word.split("=")[0] == "--stages"), None)
    if place is None:
        yield list(argv)
        return
    _, equals, numbers = argv[place].partition("=")
    words = [*argv[:place], *argv[place + (1 if equals else 2) :]]
    if not equals:
        numbers = argv[place + 1] if place + 1 < len(argv) else ""
    commands = _commands(words, numbers)
    _check(commands)
    for command in commands.values():
        yield command
        torch.compiler.reset()  # what was compiled for a model would hold on to it
        gc.collect()  # models and their hooks refer to each other in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _commands(words: list[str], numbers: str) -> dict[Path, list[str]]:
    """`words` for each stage's file, with that in the place of the one given."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", numbers)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if last < first:
        raise ConfigError(f"--stages is {numbers!r}: write the first and the last one, as in --stages 1-3")
    path, overrides, _ = parse_arguments(words)
    if wrong := [name for name in OF_ONE_STAGE if name in overrides]:
        raise ConfigError(f"--{wrong[0]} belongs to one stage and cannot go with --stages; --output_root can")
    stem = re.fullmatch(r"(.*?)\d+", path.stem)
    if stem is None:
        raise ConfigError(f"--stages: {path} does not end in the number of a stage, as hparams/stage_1.yaml does")
    files = [path.with_name(f"{stem[1]}{number}{path.suffix}") for number in range(first, last + 1)]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ConfigError(f"--stages {numbers}: there is no {', no '.join(missing)}")
    given = next(i for i, word in enumerate(words) if Path(word) == path)
    return {file: [*words[:given], str(file), *words[given + 1 :]] for file in files}


def _check(commands: Mapping[Path, Sequence[str]]) -> None:
    """Read every stage's file, so that a mistake in the last one shows before the first one trains."""
    folders: dict[Path, Path] = {}
    for file, command in commands.items():
        folder = Path(load_experiment(command)[0]["output_folder"]).resolve()
        if folder in folders:
            raise ConfigError(f"--stages: {folders[folder]} and {file} have the same output_folder, {folder}")
        folders[folder] = file
