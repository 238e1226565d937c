"""Draws the curves of a stage: loss, gradient norm, learning rates and metrics of validation over the steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiolm_lite.storage.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEAN_STEPS = 20  # of the running mean
NO_PANEL = ("epoch", "step", "lr", "loss")  # entries of validation.jsonl without a panel of their own
STEP_COLOR, MEAN_COLOR, VALIDATION_COLOR = "#9bb7d4", "#1f4e79", "#b4531a"


def draw_curves(steps: Sequence[Mapping], epochs: Sequence[Mapping], title: str, path: Path) -> None:
    """Draw the curves of a stage as a PNG file.

    Parameters
    ----------
    steps : sequence of mapping
        Lines of losses.jsonl.
    epochs : sequence of mapping
        Lines of validation.jsonl.
    title : str
        Title of the picture.
    path : Path
        PNG file to write.
    """
    from matplotlib.figure import Figure  # not pyplot, which would change the user's own figures

    names = [name for name in dict.fromkeys(name for epoch in epochs for name in epoch) if name not in NO_PANEL]
    panels = 3 + len(names)
    rows = -(-panels // 3)
    figure = Figure(figsize=(12, 2.9 * rows), layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.remove()
    _line(axes[0], steps, "loss")
    axes[0].plot(*_points(epochs, "loss"), "o-", color=VALIDATION_COLOR, markersize=3, label="validation")
    axes[0].legend()
    axes[0].set_title("loss (nats per answer token)")
    _line(axes[1], steps, "grad_norm")
    axes[1].set_title("gradient norm before clipping")
    axes[1].set_yscale("log")
    for pattern in steps[-1]["groups"] if steps else ():
        rates = [record["groups"][pattern]["lr"] for record in steps]
        axes[2].plot([record["step"] for record in steps], rates, label=pattern)
        axes[2].legend()
    axes[2].set_title("learning rates")
    for axis, name in zip(axes[3:], names):
        axis.plot(*_points(epochs, name), "o-", color=VALIDATION_COLOR, markersize=3)
        axis.set_title(f"validation: {name}")
    for axis in axes[:panels]:
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=100)


def _line(axis: "Axes", records: Sequence[Mapping], name: str) -> None:
    """Draw each step as a thin line and the running mean as a thick one."""
    steps, values = _points(records, name)
    axis.plot(steps, values, linewidth=0.5, color=STEP_COLOR)
    if len(values) >= MEAN_STEPS:
        mean = np.convolve(values, np.ones(MEAN_STEPS) / MEAN_STEPS, "valid")
        axis.plot(steps[MEAN_STEPS - 1 :], mean, linewidth=1.6, color=MEAN_COLOR, label=f"mean of {MEAN_STEPS} steps")


def _points(records: Sequence[Mapping], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the records that have a value."""
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]
