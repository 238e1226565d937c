"""The state of a run between two optimiser steps: saved in checkpoints, and restored to continue exactly.

Besides the trained tensors it consists of the optimiser, the position in the data and the random number generators of
each process.
"""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.distributed import processes
from audiolm_lite.training.bad_audio import BadAudio
from audiolm_lite.training.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    copy_tensors,
    random_state,
    seed_process,
    set_random_state,
)
from audiolm_lite.training.engines import sharding
from audiolm_lite.training.engines.torch_engine import TorchEngine
from audiolm_lite.training.engines.zero import ZeroEngine, require_layout
from audiolm_lite.training.progress import Progress
from audiolm_lite.training.run_identity import data_changes, refused_changes

logger = logging.getLogger(__name__)

ACCEPTED = "accepted_changes"  # entry of checkpoint.json: changes of the data with which the run went on


class RunState:
    """Saves and restores a run.

    Parameters
    ----------
    model : nn.Module
        AudioLanguageModel; its trainable tensors and the buffers of its adapter are saved.
    engine : TorchEngine or ZeroEngine
    folder : Path
        Output folder of the run.
    settings : mapping
        Settings of the run. A run with other settings cannot continue from its checkpoints.
    items : int
        Size of the training set, which has to be the same, too.
    lengths : sequence of int
        Tokens of its items, which have to be the same: the batches follow from them.
    metric : str
        See `CheckpointFolder`.
    interval_minutes : float
        Time between two checkpoints within an epoch; 0: none.
    bad_audio : BadAudio, optional
        Rows that are set aside, which checkpoints store.
    accept_data : bool
        Continue with other manifests, question files and audio files, and try rows that were set aside again.

    Attributes
    ----------
    checkpoints : CheckpointFolder
    metric : str
        Name of the metric that ranks validations, without "min:" or "max:".
    ranks : int
        Processes for which the windows of batches are planned: those that the run was started with.
    saved_step : int
        Optimiser step of the newest checkpoint.

    Raises
    ------
    ConfigError
        The newest checkpoint was saved with other settings, or not all processes can read it.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: TorchEngine | ZeroEngine,
        folder: Path,
        settings: Mapping[str, Any],
        items: int,
        lengths: Sequence[int] | np.ndarray,
        metric: str,
        interval_minutes: float,
        bad_audio: BadAudio | None = None,
        accept_data: bool = False,
    ):
        self.model, self.engine, self.interval = model, engine, interval_minutes * 60
        self.bad_audio, self.accept_data = bad_audio, accept_data
        digest = hashlib.blake2b(np.asarray(lengths, np.int64).tobytes(), digest_size=16).hexdigest()
        self.info: dict[str, Any] = {"items": items, "lengths": digest, "settings": settings}
        run = {**settings, "items": items, "lengths": digest}
        self.checkpoints, self._newest = open_checkpoints(folder, metric, run, accept_data)
        if self._newest:
            earlier = self._newest.info.get(ACCEPTED, [])
            self.info[ACCEPTED] = [*earlier, *data_changes(_saved_run(self._newest), run)]
        self.metric = self.checkpoints.metric
        self.ranks = self._newest.state["ranks"] if self._newest else processes.world_size()
        self.saved_step, self._saved_at = 0, time.monotonic()

    def restore(self, seed: int) -> Progress:
        """Restore the newest checkpoint, if there is one, and distribute the model over the processes.

        Parameters
        ----------
        seed : int
            Seeds the random number generators where those of the checkpoint cannot be restored.

        Returns
        -------
        Progress
            Where the run continues.
        """
        checkpoint, self._newest = self._newest, None
        progress = Progress()
        if checkpoint:
            copy_tensors(self.model, checkpoint.tensors, self.checkpoints.folder)
            progress = Progress(**checkpoint.state["progress"])
            if self.bad_audio is not None and not self.accept_data:
                self.bad_audio.load(checkpoint.state.get("bad_audio", []))
            self.saved_step = progress.step
        self.engine.distribute()
        if checkpoint:
            require_layout(checkpoint.state.get("deepspeed"), self.engine.layout, checkpoint.folder)
            self.engine.load(checkpoint.state, checkpoint.folder)
        generators = checkpoint.state["random"] if checkpoint else []
        if len(generators) == processes.world_size():
            set_random_state(generators[processes.rank()])
        elif checkpoint or processes.world_size() > 1:
            # each process draws its own dropout; with another number of processes the saved generators do not fit
            seed_process(seed, progress.step, processes.rank())
        return progress

    def is_due(self) -> bool:
        """Whether the time between two checkpoints has passed in this process."""
        return 0 < self.interval < time.monotonic() - self._saved_at

    def save(self, progress: Progress, metrics: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint; all processes must call this, between two optimiser steps.

        Parameters
        ----------
        progress : Progress
        metrics : mapping, optional
            Of a validation of these tensors, by which the checkpoint is ranked.
        """
        state = {
            **self.engine.save(self.checkpoints.shards(progress.step)),
            "progress": asdict(progress),
            "ranks": self.ranks,
            "bad_audio": [] if self.bad_audio is None else self.bad_audio.state(),
            "random": processes.gather(random_state()),
        }
        info = {"step": progress.step, "epoch": progress.epoch, "metrics": metrics, **self.info}
        tensors = {name: sharding.full_tensor(tensor) for name, tensor in tensors_to_save(self.model).items()}
        error = None
        if processes.is_main():
            try:
                self.checkpoints.save(tensors, state, info)
            except Exception as raised:
                error = raised
        processes.any_rank(error)
        self.saved_step, self._saved_at = progress.step, time.monotonic()


def open_checkpoints(
    folder: Path, metric: str, settings: Mapping[str, Any], accept_data: bool = False
) -> tuple[CheckpointFolder, Checkpoint | None]:
    """Open the checkpoints of a run and read the newest one; the main process first removes what is incomplete.

    Parameters
    ----------
    folder : Path
        Output folder of the run.
    metric : str
        See `CheckpointFolder`.
    settings : mapping
        Settings of this run, the number of `items` in its training set and the digest of their `lengths`.
    accept_data : bool
        See `refused_changes`.

    Raises
    ------
    ConfigError
        The checkpoint was saved with other settings, or not all processes can read it.

    Examples
    --------
    >>> folder, settings = getfixture("tmp_path"), {"epochs": 2}
    >>> checkpoints, newest = open_checkpoints(folder, "loss", {**settings, "items": 10})
    >>> newest is None
    True
    >>> _ = checkpoints.save({}, {}, {"step": 5, "settings": settings, "items": 10})
    >>> open_checkpoints(folder, "loss", {**settings, "items": 10})[1].info["step"]
    5
    """
    for main_process in (True, False):
        if processes.is_main() == main_process:
            checkpoints = CheckpointFolder(folder / "checkpoints", metric)
            checkpoint = checkpoints.newest()
        processes.any_rank()
    if len(set(processes.gather(checkpoint and checkpoint.info["step"]))) > 1:
        raise ConfigError(f"{folder} differs between the processes: set output_folder to a folder on a shared disk")
    if checkpoint is not None and (different := refused_changes(_saved_run(checkpoint), settings, accept_data)):
        raise ConfigError(
            f"{checkpoints.folder} contains an unfinished run with other settings: {different}. "
            f"Use the same settings, delete {folder} to start from scratch, or choose another --output_folder"
        )
    return checkpoints, checkpoint


def _saved_run(checkpoint: Checkpoint) -> dict[str, Any]:
    """Settings, number of items and digest of their lengths of the run that saved a checkpoint."""
    return {**checkpoint.info["settings"], **{name: checkpoint.info.get(name) for name in ("items", "lengths")}}


def tensors_to_save(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters by name, and the buffers of the adapter: training changes those of batch norms, too.

    Examples
    --------
    >>> model = nn.ModuleDict({"adapter": nn.BatchNorm1d(2, affine=False), "llm": nn.Linear(2, 2)})
    >>> list(tensors_to_save(model))
    ['llm.weight', 'llm.bias', 'adapter.running_mean', 'adapter.running_var', 'adapter.num_batches_tracked']
    """
    tensors: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return tensors | {name: buffer for name, buffer in model.named_buffers() if name.startswith("adapter.")}
