"""Training of several stages with one command: python train.py hparams/stage_1.yaml --stages 1-3"""

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from audiolm_lite.config.command_line import parse_arguments
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.config.experiment import load_experiment

# Keys with another value in each stage, which the command line therefore cannot set for several stages.
KEYS_PER_STAGE = ("stage", "output_folder", "previous_stage")


def stage_commands(argv: Sequence[str]) -> Iterator[list[str]]:
    """Yield the command line of each stage in `--stages FIRST-LAST`; without this option, the command line itself.

    The YAML files of the other stages are in the same folder, and their names differ in the final number. All are read
    and checked before the first stage starts. The memory of a stage is freed before the next one starts.

    Raises
    ------
    ConfigError
        A file is missing or wrong, the range is not one, or an option can be set for a single stage only.

    Examples
    --------
    >>> list(stage_commands(["hparams/stage_1.yaml", "--epochs", "2"]))
    [['hparams/stage_1.yaml', '--epochs', '2']]
    """
    index = next((i for i, word in enumerate(argv) if word.split("=")[0] == "--stages"), None)
    if index is None:
        yield list(argv)
        return
    _, equals, numbers = argv[index].partition("=")
    words = [*argv[:index], *argv[index + (1 if equals else 2) :]]
    if not equals:
        numbers = argv[index + 1] if index + 1 < len(argv) else ""
    commands = _commands(words, numbers)
    _check(commands)
    for command in commands.values():
        yield command
        torch.compiler.reset()  # compiled code keeps references to its model
        gc.collect()  # models and their hooks form reference cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _commands(words: list[str], numbers: str) -> dict[Path, list[str]]:
    """Command line of each stage: `words` with the stage's file in place of the given one."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", numbers)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise ConfigError(f"--stages is {numbers!r}: write the first and the last stage, as in --stages 1-3")
    path, overrides, _ = parse_arguments(words)
    if wrong := [name for name in KEYS_PER_STAGE if name in overrides]:
        raise ConfigError(f"--{wrong[0]} cannot be combined with --stages, as it differs per stage; use --output_root")
    stem = re.fullmatch(r"(.*?)\d+", path.stem)
    if stem is None:
        raise ConfigError(f"--stages: the name of {path} does not end in a stage number, as in hparams/stage_1.yaml")
    files = [path.with_name(f"{stem[1]}{number}{path.suffix}") for number in range(first, last + 1)]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ConfigError(f"--stages {numbers}: file not found: {', '.join(missing)}")
    given = next(i for i, word in enumerate(words) if Path(word) == path)
    return {file: [*words[:given], str(file), *words[given + 1 :]] for file in files}


def _check(commands: Mapping[Path, Sequence[str]]) -> None:
    """Read the file of each stage, so that a mistake in the last one is reported before the first one trains."""
    folders: dict[Path, Path] = {}
    for file, command in commands.items():
        folder = Path(load_experiment(command)[0]["output_folder"]).resolve()
        if folder in folders:
            raise ConfigError(f"--stages: {folders[folder]} and {file} have the same output_folder, {folder}")
        folders[folder] = file
