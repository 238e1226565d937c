"""The log of a run: progress bar, losses.jsonl, validation.jsonl, train_log.txt, loggers, and curves.png."""

import json
import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from speechbrain.utils.train_logger import FileTrainLogger
from tqdm import tqdm

from audiolm_lite.evaluation.validation import Sample
from audiolm_lite.storage.atomic import write_text
from audiolm_lite.storage.process_memory import PeakMemory
from audiolm_lite.training.logging.curves import draw_curves
from audiolm_lite.training.logging.loggers import Logger, open_loggers
from audiolm_lite.training.progress import Progress

RATE_STEPS = 50  # over which rates per second are averaged
RATES = {"samples/s": "samples", "audio s/s": "audio_seconds", "tokens/s": "input_tokens"}
LOSSES, VALIDATION = "losses.jsonl", "validation.jsonl"


class TrainingLog:
    """Logs the steps and epochs of a run; only the main process writes.

    Parameters
    ----------
    folder : Path
        The stage's output folder.
    progress : Progress
        Position from which the run continues. Later lines of the files are removed, since their steps are repeated.
    total_steps : int
    title : str
        Title of the progress bar and of curves.png.
    quiet : bool
        Whether to hide the progress bar.
    wandb : mapping, optional
        See `open_loggers`.
    settings : mapping
        Settings of the run, for Weights & Biases.
    active : bool
        Whether this is the main process.
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        total_steps: int,
        title: str,
        quiet: bool,
        wandb: Mapping[str, Any] | None,
        settings: Mapping[str, Any],
        active: bool = True,
    ):
        self.active, self.folder, self.title = active, folder, title
        # all processes must call SpeechBrain's logger: it makes them wait for the one that writes
        self.epochs = FileTrainLogger(str(folder / "train_log.txt"), precision=3)
        self.loggers: list[Logger] = []
        self.files: dict[str, TextIO] = {}
        if active:
            self.loggers = open_loggers(folder, progress.step, wandb, settings)
            for name, entry, last in ((LOSSES, "step", progress.step), (VALIDATION, "epoch", progress.epoch - 1)):
                _remove_later_lines(folder / name, entry, last)
                self.files[name] = open(folder / name, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.memory = PeakMemory(interval=0.05)
        self.bar = progress_bar(total_steps, progress.step, title, quiet or not active)
        self.start_epoch()

    def __enter__(self) -> "TrainingLog":
        """Return the log itself, which samples the memory of the process from now on."""
        self.memory.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Close the progress bar, the files and the loggers."""
        self.memory.__exit__(*error)
        self.bar.close()
        for file in self.files.values():
            file.close()
        for logger in self.loggers:
            logger.close()

    def start_epoch(self) -> None:
        """Start to measure rates, which do not include the time between epochs."""
        self.recent: deque[tuple[float, Mapping]] = deque([(time.monotonic(), {})], maxlen=RATE_STEPS + 1)

    def step(self, record: Mapping[str, Any]) -> None:
        """Log an optimiser step.

        Parameters
        ----------
        record : mapping
            See `step_record`.
        """
        self.recent.append((time.monotonic(), record))
        measured = {**self._rates(), "memory GB": self._peak_memory() / 1e9}
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
        self._log_scalars(values, record["step"])

    def epoch(self, position: Mapping[str, Any], train: Mapping[str, float], valid: Mapping[str, float]) -> None:
        """Log an epoch.

        Parameters
        ----------
        position : mapping
            epoch, step and lr.
        train : mapping
            Statistics of training.
        valid : mapping
            Metrics of validation.
        """
        self.epochs.log_stats(position, train, valid)
        if self.active:
            self._write(VALIDATION, {**position, **valid})
            self._log_scalars({f"valid/{name}": value for name, value in valid.items()}, position["step"])

    def _peak_memory(self) -> int:
        """Peak so far in bytes: of the tensors on the GPU, or, without one, of the process without mapped files."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else self.memory.peak

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Log a few answers with their questions, targets and audio."""
        for logger in self.loggers:
            for number, (row, answer, waveform) in enumerate(samples):
                text = f"{row['id']}: {row['instruction']}\nanswer: {answer}\ntarget: {row['target']}"
                logger.sample(f"samples/{number}", text, waveform, step)

    def draw(self) -> None:
        """Draw the curves as curves.png."""
        if self.active:
            steps, epochs = (
                [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]
                for name in (LOSSES, VALIDATION)
            )
            draw_curves(steps, epochs, self.title, self.folder / "curves.png")

    def _rates(self) -> dict[str, float]:
        """Samples, seconds of audio and tokens per second, over the last steps."""
        seconds = max(1e-9, self.recent[-1][0] - self.recent[0][0])
        records = [record for _, record in self.recent][1:]
        return {name: sum(record[amount] for record in records) / seconds for name, amount in RATES.items()}

    def _write(self, name: str, record: Mapping) -> None:
        self.files[name].write(json.dumps(_finite(record)) + "\n")

    def _log_scalars(self, values: Mapping[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.scalars(values, step)


def progress_bar(total: int, initial: int, description: str, disable: bool, leave: bool = True) -> tqdm:
    """Create a progress bar; without a terminal it prints a line every ten seconds.

    Examples
    --------
    >>> with progress_bar(total=100, initial=40, description="stage 1", disable=True) as bar:
    ...     print(bar.n)
    40
    """
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


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remove_later_lines(path: Path, entry: str, last: int) -> None:
    """Remove a file's lines whose `entry` is above `last`, and an incomplete line: their steps are repeated."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            if json.loads(line)[entry] > last:
                break
        except ValueError:
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))
