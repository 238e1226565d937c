"""Start of a run: random seeds, the output folder and logging."""

import logging
import random
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.storage.atomic import write_text


def seed_everything(seed: int) -> None:
    """Seed the random number generators of Python, NumPy and torch, on all devices.

    Examples
    --------
    >>> seed_everything(3)
    >>> first = torch.rand(4)
    >>> seed_everything(3)
    >>> torch.equal(torch.rand(4), first)
    True
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # all devices


def check_device(name: str) -> None:
    """Check that a device exists here, before models are loaded.

    Raises
    ------
    ConfigError
        Not the name of a device, or there is no such device.

    Examples
    --------
    >>> check_device("cpu")
    >>> check_device("gpu")
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: --device gpu: not a device of torch; write cpu, cuda, cuda:0 or mps
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: not a device of torch; write cpu, cuda, cuda:0 or mps") from error
    if device.type == "cpu":
        return
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = 0 if accelerator is None or accelerator.type != device.type else torch.accelerator.device_count()
    if (device.index or 0) >= count:
        raise ConfigError(f"--device {name}: this machine has {count} devices of this kind; write cpu or another one")


def start_run(hparams: Mapping, resolved: str, is_main: bool = True) -> None:
    """Seed the random number generators and open the output folder of an experiment that has been loaded.

    Parameters
    ----------
    hparams : mapping
        Loaded keys; `seed` and `output_folder` are used where the command has them.
    resolved : str
        Text of the resolved YAML file.
    is_main : bool
        See `open_run_folder`.

    Examples
    --------
    >>> start_run({"seed": 3}, resolved="seed: 3")  # a command without an output folder
    >>> torch.initial_seed()
    3
    """
    if "seed" in hparams:
        seed_everything(hparams["seed"])
    if "output_folder" in hparams:
        open_run_folder(hparams["output_folder"], resolved, is_main)


def open_run_folder(folder: str | Path, resolved: str, is_main: bool = True) -> None:
    """Create the output folder, store the resolved YAML file there, and log to the console and to log.txt.

    Parameters
    ----------
    folder : path
        The run's output folder.
    resolved : str
        Text of the resolved YAML file, stored as hyperparams.yaml.
    is_main : bool
        Whether this is the main process. Other processes only log warnings, to the console.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "of_experiment", False)]:
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if is_main:
        write_text(folder / "hyperparams.yaml", resolved)  # atomic: several processes may prepare into this folder
        handlers.append(logging.FileHandler(folder / "log.txt", encoding="utf-8"))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    for handler in handlers:
        handler.of_experiment = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    root.setLevel(logging.INFO if is_main else logging.WARNING)
