"""Checkpoints that a crash cannot spoil: written beside, flushed, renamed; hashed, so that damage is noticed.

A checkpoint is a folder `step_<number>` (`..._valid` when it was validated) with

- `trained.safetensors`: the trainable tensors, by name;
- `state.pt`: optimiser, random number generators and position in the data, read back with `weights_only`;
- under DeepSpeed `deepspeed/`: the optimiser's state, each process's share (see `zero`);
- `checkpoint.json`: step, epoch, metrics, the run's settings and the hashes of the other files, written last.
"""

import hashlib
import json
import logging
import math
import os
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

logger = logging.getLogger(__name__)

TENSORS, STATE, INFO = "trained.safetensors", "state.pt", "checkpoint.json"
KEEP_NEWEST = 2  # one more than needed, for the case that the newest is damaged


class DamagedCheckpointError(UserError):
    """A checkpoint's folder does not hold what its `checkpoint.json` says."""


@dataclass
class Checkpoint:
    """What was saved: `tensors` by name, `state` for an exact restart, `info` as JSON, and the `folder` it lies in."""

    tensors: dict[str, Tensor]
    state: dict
    info: dict
    folder: Path


class CheckpointFolder:
    """The checkpoints of one run.

    Parameters
    ----------
    folder : Path
        Made when missing; leftovers of an interrupted save or removal are cleared away.
    metric : str
        Entry of `info["metrics"]` that ranks validated checkpoints: "loss" and others where less is better, "accuracy",
        or "max:<entry>" where more is.
    """

    def __init__(self, folder: Path, metric: str):
        self.folder = Path(folder)
        best, _, self.metric = metric.rpartition(":")
        self.sign = -1 if best == "max" or (not best and self.metric == "accuracy") else 1
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*-step_*"):
            shutil.rmtree(leftover)

    def cost(self, metrics: Mapping[str, float]) -> float:
        """What ranks a validation: the least is the best, NaN the worst.

        Raises
        ------
        ConfigError
            Validation does not give the metric.
        """
        if self.metric not in metrics:
            raise ConfigError(f"valid_metric: validation gives {', '.join(metrics)}, and no {self.metric}")
        cost = self.sign * metrics[self.metric]
        return math.inf if math.isnan(cost) else cost

    def shards(self, step: int) -> Path:
        """Folder for what all processes write before one of them saves the checkpoint that it becomes part of."""
        return self.folder / f".shards-step_{step:08d}"

    def save(self, tensors: Mapping[str, Tensor], state: Mapping, info: Mapping) -> Path:
        """Write one checkpoint atomically, then remove those that are neither best nor among the newest."""
        name = f"step_{info['step']:08d}" + ("_valid" if info.get("metrics") else "")
        temporary, final = self.folder / f".saving-{name}", self.folder / name
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_tensors(temporary / TENSORS, tensors)
        torch.save(dict(state), temporary / STATE)
        if (shards := self.shards(info["step"])).is_dir():
            for part in filter(Path.is_dir, shards.iterdir()):
                os.rename(part, temporary / part.name)
            shutil.rmtree(shards)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        hashes = {file.relative_to(temporary).as_posix(): file_hash(file) for file in files}
        (temporary / INFO).write_text(json.dumps({**info, "sha256": hashes}, indent=1), encoding="utf-8")
        for path in (*temporary.rglob("*"), temporary):
            _flush(path)
        os.rename(temporary, final)
        _flush(self.folder)
        keep = {*self._names()[-KEEP_NEWEST:], *self._ranked()[:1]}
        for name in self._names():
            if name not in keep:
                self._remove(self.folder / name)
        return final

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint; damaged ones are reported and put aside. None where there is none."""
        return self._first_intact(self._names()[::-1])

    def best(self) -> Checkpoint | None:
        """The intact checkpoint with the best validation metric. None where none was validated."""
        return self._first_intact(self._ranked())

    def _first_intact(self, names: list[str]) -> Checkpoint | None:
        for name in names:
            try:
                return read_checkpoint(self.folder / name)
            except DamagedCheckpointError as error:
                aside = self.folder / f"damaged-{name}"
                logger.warning("%s is damaged (%s): moved to %s, not used", self.folder / name, error, aside.name)
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(self.folder / name, aside)
        return None

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("step_*"))

    def _ranked(self) -> list[str]:
        """Names of the validated checkpoints, best first and the earlier one on a tie; NaN is the worst."""
        ranked = []
        for name in self._names():
            try:
                metrics = json.loads((self.folder / name / INFO).read_text(encoding="utf-8"))["metrics"]
                ranked.append((self.cost(metrics), name))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not validated, or damaged, which loading reports
        return [name for _, name in sorted(ranked)]

    def _remove(self, path: Path) -> None:
        hidden = path.with_name(f".removing-{path.name}")  # renamed first: a half removed folder is never seen
        os.rename(path, hidden)
        shutil.rmtree(hidden)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint's folder.

    Raises
    ------
    DamagedCheckpointError
        A file is missing, or not the one that was written.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        for file, expected in info["sha256"].items():
            if file_hash(folder / file) != expected:
                raise DamagedCheckpointError(f"{file} does not have the hash that {INFO} gives")
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        return Checkpoint(load_file(folder / TENSORS), state, info, folder)
    except (OSError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"{type(error).__name__}: {error}") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, by name, to a safetensors file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


@torch.no_grad()
def copy_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: Any) -> None:
    """Copy tensors into the parameters and buffers of the same names; all names and shapes are checked first.

    Raises
    ------
    ConfigError
        The model has no such name, or another shape.
    """
    own = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if name not in own:
            raise ConfigError(
                f"{source} holds {name}, which this model does not have: its encoder, adapter or llm differ"
            )
        if own[name].shape != tensor.shape:
            raise ConfigError(
                f"{source} holds {name} of shape {list(tensor.shape)}; here it is {list(own[name].shape)}"
            )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def random_state() -> dict:
    """State of every random number generator that training may draw from, as tensors and plain numbers."""
    legacy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping) -> None:
    """Bring the random number generators back to what `random_state` gave."""
    random.setstate(state["python"])
    saved = state["numpy"]
    np.random.set_state({**saved, "state": {**saved["state"], "key": np.array(saved["state"]["key"], dtype=np.uint32)}})
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_process(*numbers: int) -> None:
    """Start the random number generators from numbers that say which process this is, and when."""
    first, second, third = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)  # all devices


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
