"""Boards that show a run as it goes: TensorBoard, and Weights & Biases where asked for."""

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from audiolm_lite.audio.reading import SAMPLE_RATE
from audiolm_lite.config.errors import ConfigError


def open_boards(folder: Path, step: int, wandb: Mapping | None, settings: Mapping) -> list:
    """Open the boards of a run, which goes on after `step`.

    Parameters
    ----------
    folder : Path
        The stage's output folder.
    step : int
        What the boards have of later steps is about to be repeated.
    wandb : mapping, optional
        Arguments of `wandb.init`, such as project, name and mode; None: no Weights & Biases.
    settings : mapping
        Of the run, shown there.

    Raises
    ------
    ConfigError
        Weights & Biases is asked for and its package is not installed.
    """
    boards: list = []
    if importlib.util.find_spec("tensorboard") is not None:  # all that it shows is in files of JSON lines, too
        boards.append(TensorBoard(folder / "tensorboard", step))
    if wandb is not None:
        boards.append(WeightsAndBiases(folder, wandb, settings))
    return boards


class TensorBoard:
    """Writes what `tensorboard --logdir FOLDER` shows."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder, purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show values by name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def sample(self, name: str, text: str, waveform: Tensor | None, step: int) -> None:
        """Show an answer and what it is about, samples [S] at 16 kHz."""
        self.writer.add_text(name, text.replace("\n", "  \n"), step)  # Markdown's line break
        if waveform is not None:
            self.writer.add_audio(name, waveform.clamp(-1, 1), step, SAMPLE_RATE)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run on Weights & Biases, found again by its folder when training goes on.

    Parameters
    ----------
    folder : Path
        The stage's output folder.
    options : mapping
        Arguments of `wandb.init`.
    settings : mapping
        Shown as the run's configuration.
    """

    def __init__(self, folder: Path, options: Mapping, settings: Mapping):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "wandb: Weights & Biases is not installed: pip install wandb, or leave wandb out"
            ) from error
        self.wandb = wandb
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        defaults = {"id": name, "name": "/".join(folder.parts[-2:]), "resume": "allow", "dir": str(folder)}
        self.run = wandb.init(config=dict(settings), **{**defaults, **options})
        self.run.define_metric("*", step_metric="step")  # its own steps may not come twice, as ours do after a restart

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show values by name."""
        self.run.log({**values, "step": step})

    def sample(self, name: str, text: str, waveform: Tensor | None, step: int) -> None:
        """Show an answer and what it is about, samples [S] at 16 kHz."""
        shown = text if waveform is None else self.wandb.Audio(waveform.numpy(), SAMPLE_RATE, caption=text)
        self.run.log({name: shown, "step": step})

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()
