"""Checkpoints: written atomically, so that a crash leaves the earlier ones, and hashed, so that damage is detected.

A checkpoint is a folder `step_<number>`, or `step_<number>_valid` with the metrics of a validation. It contains

- `trained.safetensors`: the trainable tensors, by name;
- `state.pt`: optimiser, random number generators and position in the data, read with `weights_only`;
- under DeepSpeed `deepspeed/`: the optimiser's state, a shard per process (see `engines.zero`);
- `checkpoint.json`: step, epoch, metrics, the run's settings and the hashes of the other files, written last.
"""

import json
import logging
import math
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError, UserError
from audiolm_lite.storage.atomic import atomic_folder, flush, move
from audiolm_lite.storage.hashes import sha256_of

logger = logging.getLogger(__name__)

TENSORS, STATE, INFO = "trained.safetensors", "state.pt", "checkpoint.json"
KEEP_NEWEST = 2  # the second one is used where the newest is damaged


class DamagedCheckpointError(UserError):
    """A file of a checkpoint is missing, or its content is not the one that was written."""


@dataclass
class Checkpoint:
    """Content of a checkpoint.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Trainable tensors, by name.
    state : dict
        What a run needs to continue exactly: optimiser, random number generators, progress.
    info : dict
        Content of `checkpoint.json`.
    folder : Path
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    info: dict[str, Any]
    folder: Path


class CheckpointFolder:
    """The checkpoints of one run.

    Parameters
    ----------
    folder : Path
        Created where it is missing. What an interrupted save or removal left is removed.
    metric : str
        Entry of `info["metrics"]` that ranks validated checkpoints. The lowest value is the best one, except for
        "accuracy" and for "max:<entry>".
    """

    def __init__(self, folder: Path, metric: str):
        self.folder = Path(folder)
        best, _, self.metric = metric.rpartition(":")
        self.sign = -1 if best == "max" or (not best and self.metric == "accuracy") else 1
        self.folder.mkdir(parents=True, exist_ok=True)
        for pattern in (".step_*.tmp", ".*-step_*"):
            for leftover in self.folder.glob(pattern):
                shutil.rmtree(leftover)

    def cost(self, metrics: Mapping[str, float]) -> float:
        """Value by which validations are compared: the lowest is the best, NaN the worst.

        Raises
        ------
        ConfigError
            `metrics` do not contain the metric.

        Examples
        --------
        >>> CheckpointFolder(getfixture("tmp_path"), "max:cider_d").cost({"loss": 1.25, "cider_d": 0.5})
        -0.5
        """
        if self.metric not in metrics:
            raise ConfigError(f"valid_metric: validation computes {', '.join(metrics)}, and not {self.metric}")
        cost = self.sign * metrics[self.metric]
        return math.inf if math.isnan(cost) else cost

    def shards(self, step: int) -> Path:
        """Folder for the shards that all processes write before the main process saves the checkpoint with them."""
        return self.folder / f".shards-step_{step:08d}"

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], info: Mapping[str, Any]) -> Path:
        """Write a checkpoint atomically, then remove all but the newest ones and the best one.

        Parameters
        ----------
        tensors : mapping
            Trainable tensors, by name.
        state : mapping
            Tensors and plain values.
        info : mapping
            JSON, with `step` and, where it was validated, `metrics`.

        Returns
        -------
        Path
            Folder of the checkpoint.
        """
        name = f"step_{info['step']:08d}" + ("_valid" if info.get("metrics") else "")
        if (self.folder / name).is_dir():  # an epoch whose validation is not ranked may end with a step that is saved
            self._remove(self.folder / name)
        with atomic_folder(self.folder / name) as unfinished:
            save_tensors(unfinished / TENSORS, tensors)
            torch.save(dict(state), unfinished / STATE)
            if (shards := self.shards(info["step"])).is_dir():
                for folder in filter(Path.is_dir, shards.iterdir()):
                    move(folder, unfinished / folder.name)
                shutil.rmtree(shards)
            files = sorted(path for path in unfinished.rglob("*") if path.is_file())
            hashes = {file.relative_to(unfinished).as_posix(): sha256_of(file) for file in files}
            (unfinished / INFO).write_text(json.dumps({**info, "sha256": hashes}, indent=1), encoding="utf-8")
            for path in (*unfinished.rglob("*"), unfinished):
                flush(path)
        flush(self.folder)
        keep = {*self._names()[-KEEP_NEWEST:], *self._ranked()[:1]}
        for name in self._names():
            if name not in keep:
                self._remove(self.folder / name)
        return self.folder / name

    def newest(self) -> Checkpoint | None:
        """Read the newest intact checkpoint, None where there is none; damaged ones are logged and moved away."""
        return self._first_intact(self._names()[::-1])

    def best(self) -> Checkpoint | None:
        """Read the intact checkpoint with the best validation metric, None where none was validated."""
        return self._first_intact(self._ranked())

    def _first_intact(self, names: list[str]) -> Checkpoint | None:
        for name in names:
            try:
                return read_checkpoint(self.folder / name)
            except DamagedCheckpointError as error:
                moved = self.folder / f"damaged-{name}"
                logger.warning("%s. It is not used and was moved to %s", error, moved.name)
                shutil.rmtree(moved, ignore_errors=True)
                move(self.folder / name, moved)
        return None

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("step_*"))

    def _ranked(self) -> list[str]:
        """Names of the validated checkpoints, best first; of equal ones the earliest first."""
        ranked = []
        for name in self._names():
            try:
                metrics = json.loads((self.folder / name / INFO).read_text(encoding="utf-8"))["metrics"]
                ranked.append((self.cost(metrics), name))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not validated, or damaged, which is logged when it is read
        return [name for _, name in sorted(ranked)]

    def _remove(self, path: Path) -> None:
        # renamed first: a folder whose removal was interrupted is not taken for a checkpoint
        hidden = path.with_name(f".removing-{path.name}")
        move(path, hidden)
        shutil.rmtree(hidden)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's folder and compare the hashes of its files.

    Raises
    ------
    DamagedCheckpointError
        A file is missing, or its content is not the one that was written.

    Examples
    --------
    >>> folder = CheckpointFolder(getfixture("tmp_path"), "loss").save({"bias": torch.zeros(2)}, {}, {"step": 3})
    >>> checkpoint = read_checkpoint(folder)
    >>> checkpoint.folder.name, checkpoint.tensors, checkpoint.info["step"]
    ('step_00000003', {'bias': tensor([0., 0.])}, 3)
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        for file, expected in info["sha256"].items():
            if sha256_of(folder / file) != expected:
                raise DamagedCheckpointError(f"{folder} is damaged: {file} does not have the hash recorded in {INFO}")
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        return Checkpoint(load_file(folder / TENSORS), state, info, folder)
    except (OSError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name to a safetensors file.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "trained.safetensors"
    >>> save_tensors(path, {"adapter.bias": nn.Parameter(torch.zeros(2))})
    >>> load_file(path)
    {'adapter.bias': tensor([0., 0.])}
    """
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


@torch.no_grad()
def copy_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: Any) -> None:
    """Copy tensors into the parameters and buffers of the same names, after checking all names and shapes.

    Parameters
    ----------
    model : nn.Module
    tensors : mapping of str to Tensor
    source : object
        Where the tensors are from, for error messages.

    Raises
    ------
    ConfigError
        The model has no tensor of a name, or one of another shape.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> copy_tensors(layer, {"bias": torch.tensor([1.0, 2.0])}, "stage_1")
    >>> layer.bias.tolist()
    [1.0, 2.0]
    """
    own = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if name not in own:
            raise ConfigError(
                f"{source} contains {name}, which this model does not have: its encoder, adapter or llm differ"
            )
        if own[name].shape != tensor.shape:
            raise ConfigError(
                f"{source} contains {name} of shape {list(tensor.shape)}, and this model has {list(own[name].shape)}"
            )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def random_state() -> dict:
    """State of all random number generators that training draws from, as tensors and plain numbers.

    Examples
    --------
    >>> state = random_state()
    >>> first = torch.rand(3)
    >>> set_random_state(state)
    >>> torch.equal(torch.rand(3), first)
    True
    """
    legacy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_random_state(state: Mapping) -> None:
    """Restore the state of the random number generators that `random_state` returned.

    Examples
    --------
    >>> state = random_state()
    >>> numbers = random.random(), np.random.rand()
    >>> set_random_state(state)
    >>> (random.random(), np.random.rand()) == numbers
    True
    """
    random.setstate(state["python"])
    saved = state["numpy"]
    np.random.set_state({**saved, "state": {**saved["state"], "key": np.array(saved["state"]["key"], dtype=np.uint32)}})
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def seed_process(*numbers: int) -> None:
    """Seed all random number generators from several numbers, such as seed, step and rank.

    Examples
    --------
    >>> seed_process(1234, 0)
    >>> first = torch.rand(3)
    >>> seed_process(1234, 1)  # another rank
    >>> torch.equal(torch.rand(3), first)
    False
    """
    first, second, third = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)  # all devices
