"""What a run shows while it goes: a progress bar, losses.jsonl, train_log.txt and TensorBoard."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from speechbrain.utils.train_logger import FileTrainLogger
from tqdm import tqdm

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:  # an option: everything it would show is in losses.jsonl and train_log.txt too
    SummaryWriter = None


class TrainingLog:
    """The curves of one run, of which the main process alone keeps files.

    Parameters
    ----------
    folder : Path
        The stage's output folder.
    step, total_steps : int
        Where the run goes on, and its end; what the files have beyond `step` is about to be repeated and cut off.
    title : str
        Of the progress bar.
    quiet : bool
        No progress bar.
    active : bool
        False: keep and show nothing (the other processes of a run).
    """

    def __init__(self, folder: Path, step: int, total_steps: int, title: str, quiet: bool, active: bool = True):
        self.active = active
        self.bar = progress_bar(total_steps, step, title, quiet or not active)
        self.samples, self.began = 0, time.monotonic()
        # SpeechBrain's logger makes all processes wait for the one that writes, so each of them has to call it
        self.epochs = FileTrainLogger(str(folder / "train_log.txt"), precision=3)
        if not active:
            return
        _keep_lines(folder / "losses.jsonl", step)
        self.losses = open(folder / "losses.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.board = SummaryWriter(folder / "tensorboard", purge_step=step) if SummaryWriter else None

    def __enter__(self) -> "TrainingLog":
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        self.bar.close()
        if self.active:
            self.losses.close()
            if self.board:
                self.board.close()

    def step(self, record: Mapping) -> None:
        """Note an optimiser step: what `fit_batch` returns."""
        self.samples += record["samples"]
        rate = f"{self.samples / (time.monotonic() - self.began):.1f}"
        shown = {"loss": f"{record['loss']:.3f}", "lr": f"{record['lr']:.1e}", "samples/s": rate}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        if not self.active:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in record.items()}  # JSON has no NaN
        self.losses.write(json.dumps(finite) + "\n")
        for name in ("loss", "lr", "grad_norm") if self.board else ():
            self.board.add_scalar(f"train/{name}", record[name], record["step"])

    def epoch(self, where: Mapping, train: Mapping, valid: Mapping) -> None:
        """Note an epoch: epoch, step and lr; its training statistics; its validation metrics."""
        self.epochs.log_stats(where, train, valid)
        for name in valid if self.active and self.board else ():
            self.board.add_scalar(f"valid/{name}", valid[name], where["step"])


def progress_bar(total: int, initial: int, description: str, disable: bool, leave: bool = True) -> tqdm:
    """A progress bar with time left; where nobody watches a terminal, a line every ten seconds."""
    interval = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        disable=disable,
        leave=leave,
        mininterval=interval,
        dynamic_ncols=True,
    )


def _keep_lines(path: Path, step: int) -> None:
    """Cut losses.jsonl after `step`: what came later, perhaps half written, is about to be repeated."""
    lines = path.read_text(encoding="utf-8").splitlines()[:step] if path.is_file() else []
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
