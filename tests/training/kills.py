"""Runs that kill their own process at a named moment, or at any call between two steps; test_resume.py starts them."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from audiolm_lite.data.mixing import Mixture
from audiolm_lite.training import brain, checkpoint
from audiolm_lite.training.brain import AudioLMBrain
from audiolm_lite.training.checkpoint import CheckpointFolder
from audiolm_lite.training.engines import torch_engine
from audiolm_lite.training.logging.training_log import TrainingLog
from tests.training.toy import ToyData, make_brain, make_model

EPOCHS = 3
# Moments of an optimiser step, in their order: (owner of a function, its name, whether after its call) ...
STEP = {
    "before the step": (AudioLMBrain, "fit_batch", False),
    "between the batches of a window": (AudioLMBrain, "compute_objectives", True),
    "with gradients": (torch_engine, "average_and_clip", True),
    "with new weights": (torch.optim.AdamW, "step", True),
    "before its line in losses.jsonl": (TrainingLog, "step", False),
    "before saving": (CheckpointFolder, "save", False),
    "tensors half written": (checkpoint, "save_tensors", False),
    "tensors without state": (checkpoint, "save_tensors", True),
    "state without hashes": (checkpoint, "sha256_of", False),
    "not yet renamed": (os, "replace", False),
    "renamed, nothing removed": (CheckpointFolder, "_names", False),
    "about to remove": (CheckpointFolder, "_remove", False),
    "removed": (CheckpointFolder, "_remove", True),
    "saved": (CheckpointFolder, "save", True),
}
# ... and those that only occur at the end of an epoch.
VALIDATION = {
    "in validation": (AudioLMBrain, "compute_forward", True),
    "validated, not logged": (TrainingLog, "epoch", False),
    "logged, not saved": (TrainingLog, "epoch", True),
}
MOMENTS = STEP | VALIDATION

make_model()  # the first LoRA compiles hundreds of patterns: once before processes are forked, not in each of them


def train_until(folder: Path, step: int | None = None, moment: str = "", events: int = 0) -> None:
    """Train on a mixture of two sets with windows of two batches; saves after every step.

    Parameters
    ----------
    folder : Path
    step : int, optional
        Step after which the process kills itself; None: never.
    moment : str
        Which of `MOMENTS`, at its next occurrence; "": after `events`.
    events : int
        Calls and returns of the interpreter, those of C functions included.
    """
    torch.set_num_threads(1)
    if step is not None:
        kill_after(step, lambda: arm(moment, events))
    train(folder)


def train(folder: Path) -> AudioLMBrain:
    """The run itself."""
    torch.manual_seed(1)
    data = ToyData(100)
    data.mixture = Mixture([70, 30], weights=[1, 1])
    trained = make_brain(folder, epochs=EPOCHS)
    trained.fit_stage(data, ToyData(6, seed=1))
    return trained


def kill_after(step: int, armed: Callable[[], None]) -> None:
    """Call `armed` once, before the first step after step number `step`."""
    fit_batch = AudioLMBrain.fit_batch

    def watched(self, window):
        if self.progress.step >= step:
            AudioLMBrain.fit_batch = fit_batch
            armed()
        return fit_batch(self, window)

    AudioLMBrain.fit_batch = watched


def arm(moment: str, events: int) -> None:
    """End this process at the next occurrence of a moment, or after `events`."""
    if moment == "before the step":
        die()
    elif moment:
        watch(moment)
    else:
        left = iter(range(events))
        sys.setprofile(lambda *_: next(left, None) is None and die())


def watch(moment: str) -> None:
    """End this process before or after the next call of a moment's function."""
    owner, name, after = MOMENTS[moment]
    function = getattr(owner, name)

    def last(*arguments, **options):
        if moment == "in validation" and arguments[2] != brain.sb.Stage.VALID:
            return function(*arguments, **options)
        if moment == "tensors half written":
            function(*arguments, **options)
            os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
        elif after:
            function(*arguments, **options)
        die()

    setattr(owner, name, last)


def die() -> None:
    """End this process like `kill -9`, or like the system when memory has run out."""
    os.kill(os.getpid(), signal.SIGKILL)


def events_of_steps(folder: Path) -> list[int]:
    """Count the events of each step of a run up to the next step: saving and validation are included."""
    torch.set_num_threads(1)
    count, counts = 0, []
    fit_batch = AudioLMBrain.fit_batch

    def counted(*_):
        nonlocal count
        count += 1

    def watched(self, window):
        counts.append(count)
        sys.setprofile(counted)
        return fit_batch(self, window)

    AudioLMBrain.fit_batch = watched
    try:
        train(folder)
    finally:
        sys.setprofile(None)
        AudioLMBrain.fit_batch = fit_batch
    return [after - before for before, after in zip(counts, [*counts[1:], count])]
