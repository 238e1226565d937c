"""The curves of a stage as one picture."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A running mean is taken over so many steps.
WINDOW = 20
# Entries of validation.jsonl that have no panel of their own.
_PLACE = ("epoch", "step", "lr", "loss")
THIN, THICK, POINTS = "#9bb7d4", "#1f4e79", "#b4531a"


def draw_curves(steps: Sequence[Mapping], epochs: Sequence[Mapping], title: str, path: Path) -> None:
    """Draw loss, gradient norm, learning rates and the metrics of validation over optimiser steps.

    Parameters
    ----------
    steps : sequence of mapping
        Lines of losses.jsonl.
    epochs : sequence of mapping
        Lines of validation.jsonl.
    title : str
        Above the picture.
    path : Path
        The PNG file.
    """
    from matplotlib.figure import Figure  # without pyplot, whose state and windows belong to the user

    names = [name for name in dict.fromkeys(name for epoch in epochs for name in epoch) if name not in _PLACE]
    panels = 3 + len(names)
    rows = -(-panels // 3)
    figure = Figure(figsize=(12, 2.9 * rows), layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.remove()
    _line(axes[0], steps, "loss")
    axes[0].plot(*_points(epochs, "loss"), "o-", color=POINTS, markersize=3, label="validation")
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
        axis.plot(*_points(epochs, name), "o-", color=POINTS, markersize=3)
        axis.set_title(f"validation: {name}")
    for axis in axes[:panels]:
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=100)
    os.replace(temporary, path)


def _line(axis: "Axes", records: Sequence[Mapping], name: str) -> None:
    """Every step thin, the running mean thick."""
    steps, values = _points(records, name)
    axis.plot(steps, values, linewidth=0.5, color=THIN)
    if len(values) >= WINDOW:
        mean = np.convolve(values, np.ones(WINDOW) / WINDOW, "valid")
        axis.plot(steps[WINDOW - 1 :], mean, linewidth=1.6, color=THICK, label=f"mean of {WINDOW} steps")


def _points(records: Sequence[Mapping], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the records that have one."""
    found = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
