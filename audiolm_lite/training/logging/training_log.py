"""What a run shows while it goes: a progress bar, losses.jsonl, validation.jsonl, train_log.txt, boards, pictures."""

import json
import math
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.train_logger import FileTrainLogger
from tqdm import tqdm

from audiolm_lite.evaluation.validation import Sample
from audiolm_lite.training.logging.curves import draw_curves
from audiolm_lite.training.logging.loggers import open_boards
from audiolm_lite.training.optimizer_step import Progress

# What a rate per second is taken over: long enough to be steady, short enough to follow a change.
STEPS_OF_A_RATE = 50
RATES = {"samples/s": "samples", "audio s/s": "audio_seconds", "tokens/s": "input_tokens"}
LOSSES, VALIDATION = "losses.jsonl", "validation.jsonl"


class TrainingLog:
    """The curves of one run, of which the main process alone keeps files.

    Parameters
    ----------
    folder : Path
        The stage's output folder.
    progress : Progress
        Where the run goes on; what the files have beyond that is about to be repeated and cut off.
    total_steps : int
    title : str
        Of the progress bar.
    quiet : bool
        No progress bar.
    wandb : mapping, optional
        Show the run on Weights & Biases, too (see `open_boards`).
    settings : mapping
        Of the run, to be shown there.
    active : bool
        False: keep and show nothing (the other processes of a run).
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        total_steps: int,
        title: str,
        quiet: bool,
        wandb: Mapping | None,
        settings: Mapping,
        active: bool = True,
    ):
        self.active, self.folder, self.title = active, folder, title
        # SpeechBrain's logger makes all processes wait for the one that writes, so each of them has to call it
        self.epochs = FileTrainLogger(str(folder / "train_log.txt"), precision=3)
        self.boards, self.files = [], {}
        if active:
            self.boards = open_boards(folder, progress.step, wandb, settings)
            for name, entry, last in ((LOSSES, "step", progress.step), (VALIDATION, "epoch", progress.epoch - 1)):
                _keep_lines(folder / name, entry, last)
                self.files[name] = open(folder / name, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.bar = progress_bar(total_steps, progress.step, title, quiet or not active)
        self.start_epoch()

    def __enter__(self) -> "TrainingLog":
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        self.bar.close()
        for open_thing in (*self.files.values(), *self.boards):
            open_thing.close()

    def start_epoch(self) -> None:
        """Begin to measure rates: the time between epochs does not count."""
        self.recent: deque[tuple[float, Mapping]] = deque([(time.monotonic(), {})], maxlen=STEPS_OF_A_RATE + 1)

    def step(self, record: Mapping) -> None:
        """Note an optimiser step: what `fit_batch` returns."""
        self.recent.append((time.monotonic(), record))
        measured = {**self._rates(), "memory GB": peak_memory() / 1e9}
        shown = {"loss": f"{record['loss']:.3f}", "lr": f"{record['lr']:.1e}", "padding": f"{record['padding']:.0%}"}
        self.bar.set_postfix({**shown, **{name: f"{value:.3g}" for name, value in measured.items()}}, refresh=False)
        self.bar.update()
        if not self.active:
            return
        self._write(LOSSES, record)
        values = {f"train/{name}": record[name] for name in ("loss", "lr", "grad_norm")}
        for pattern, group in record["groups"].items():
            values |= {f"{name} of groups/{pattern}": value for name, value in group.items()}
        values |= {f"throughput/{name}": value for name, value in {**measured, "padding": record["padding"]}.items()}
        self._show(values, record["step"])

    def epoch(self, where: Mapping, train: Mapping, valid: Mapping) -> None:
        """Note an epoch: epoch, step and lr; its training statistics; its validation metrics."""
        self.epochs.log_stats(where, train, valid)
        if self.active:
            self._write(VALIDATION, {**where, **valid})
            self._show({f"valid/{name}": value for name, value in valid.items()}, where["step"])

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Show a few answers with their questions, targets and audio."""
        for board in self.boards:
            for number, (row, answer, waveform) in enumerate(samples):
                text = f"{row['id']}: {row['instruction']}\nanswer: {answer}\ntarget: {row['target']}"
                board.sample(f"samples/{number}", text, waveform, step)

    def draw(self) -> None:
        """Draw the curves as curves.png."""
        if self.active:
            steps, epochs = (
                [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]
                for name in (LOSSES, VALIDATION)
            )
            draw_curves(steps, epochs, self.title, self.folder / "curves.png")

    def _rates(self) -> dict[str, float]:
        """What the last steps have gone through, per second."""
        seconds = max(1e-9, self.recent[-1][0] - self.recent[0][0])
        records = [record for _, record in self.recent][1:]
        return {name: sum(record[amount] for record in records) / seconds for name, amount in RATES.items()}

    def _write(self, name: str, record: Mapping) -> None:
        self.files[name].write(json.dumps(_finite(record)) + "\n")

    def _show(self, values: Mapping[str, float], step: int) -> None:
        for board in self.boards:
            board.scalars(values, step)


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


def peak_memory() -> float:
    """Bytes at the peak so far: of tensors on the GPU, or of the whole process where there is none."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _finite(value: Any) -> Any:
    """A record as JSON takes it, which has no NaN."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_lines(path: Path, entry: str, last: int) -> None:
    """Cut a file's lines after those whose `entry` is `last`: what came later, perhaps half written, is repeated."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            if json.loads(line)[entry] > last:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)
