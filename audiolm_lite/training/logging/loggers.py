"""Loggers that show a run while it trains: TensorBoard and Weights & Biases."""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from audiolm_lite.audio.reading import SAMPLE_RATE
from audiolm_lite.config.errors import ConfigError


class Logger(Protocol):
    """What the log of a run calls; `TensorBoard` and `WeightsAndBiases` have these methods."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log values by name."""

    def sample(self, name: str, text: str, waveform: Tensor | None, step: int) -> None:
        """Log an answer and its audio, samples [S] at 16 kHz."""

    def close(self) -> None:
        """Write what is buffered."""


def open_loggers(folder: Path, step: int, wandb: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> list[Logger]:
    """Open TensorBoard, if it is installed, and Weights & Biases, if it is requested.

    Parameters
    ----------
    folder : Path
        The stage's output folder.
    step : int
        Step from which the run continues. TensorBoard discards its records of later steps.
    wandb : mapping, optional
        Arguments of `wandb.init`, such as project, name and mode; None: no Weights & Biases.
    settings : mapping
        Settings of the run, for Weights & Biases.

    Raises
    ------
    ConfigError
        Weights & Biases is requested and its package is not installed.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> loggers = open_loggers(folder, step=0, wandb=None, settings={})
    >>> [type(logger).__name__ for logger in loggers]
    ['TensorBoard']
    >>> for logger in loggers:
    ...     logger.close()
    """
    loggers: list[Logger] = []
    if importlib.util.find_spec("tensorboard") is not None:  # optional: the files of JSON lines contain the same
        loggers.append(TensorBoard(folder / "tensorboard", step))
    if wandb is not None:
        loggers.append(WeightsAndBiases(folder, wandb, settings))
    return loggers


class TensorBoard:
    """Writes the files that `tensorboard --logdir FOLDER` shows."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log values by name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def sample(self, name: str, text: str, waveform: Tensor | None, step: int) -> None:
        """Log an answer and its audio, samples [S] at 16 kHz."""
        self.writer.add_text(name, text.replace("\n", "  \n"), step)  # a line break in Markdown
        if waveform is not None:
            self.writer.add_audio(name, waveform.clamp(-1, 1), step, SAMPLE_RATE)

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


class WeightsAndBiases:
    """A run on Weights & Biases; a run that continues in the same folder is the same run there.

    Parameters
    ----------
    folder : Path
        The stage's output folder.
    options : mapping
        Arguments of `wandb.init`.
    settings : mapping
        Configuration of the run.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], settings: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("wandb: Weights & Biases is not installed: pip install wandb, or remove wandb") from error
        self.wandb = wandb
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        defaults = {"id": name, "name": "/".join(folder.parts[-2:]), "resume": "allow", "dir": str(folder)}
        self.run = wandb.init(config=dict(settings), **{**defaults, **options})
        self.run.define_metric("*", step_metric="step")  # its own step counter cannot repeat steps, as a restart does

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log values by name."""
        self.run.log({**values, "step": step})

    def sample(self, name: str, text: str, waveform: Tensor | None, step: int) -> None:
        """Log an answer and its audio, samples [S] at 16 kHz."""
        shown = text if waveform is None else self.wandb.Audio(waveform.numpy(), SAMPLE_RATE, caption=text)
        self.run.log({name: shown, "step": step})

    def close(self) -> None:
        """Send what is buffered."""
        self.run.finish()
