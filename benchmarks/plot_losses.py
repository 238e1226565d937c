"""Loss over optimiser steps of finished or running stages, as one PNG: the pictures in RESULTS.md.

    python benchmarks/plot_losses.py OUT.png "stage 1=recipes/MiniASQA/ltu_as/results/stage_1" ...

Thin: every step. Thick: running mean over 20 steps. The last line of standard output is one JSON object with each
curve's first and last running mean.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

WINDOW = 20


def main(argv: list[str]) -> None:
    """Draw the stages side by side with one scale."""
    out, *stages = argv
    figure, axes = plt.subplots(1, len(stages), figsize=(4 * len(stages), 3), sharey=True, squeeze=False)
    ends = {}
    for axis, stage in zip(axes[0], stages, strict=True):
        name, folder = stage.split("=", 1)
        records = [json.loads(line) for line in Path(folder, "losses.jsonl").read_text().splitlines()]
        steps, losses = [r["step"] for r in records], [r["loss"] for r in records]
        window = min(WINDOW, len(losses))
        smooth = np.convolve(losses, np.ones(window) / window, "valid")
        axis.plot(steps, losses, linewidth=0.4, color="#9bb7d4")
        axis.plot(steps[window - 1 :], smooth, linewidth=1.6, color="#1f4e79")
        axis.set_title(name)
        axis.set_xlabel("optimiser step")
        axis.grid(alpha=0.3)
        ends[name] = [round(float(smooth[0]), 4), round(float(smooth[-1]), 4)]
    axes[0][0].set_ylabel("loss (nats per answer token)")
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    print(json.dumps(ends))


if __name__ == "__main__":
    main(sys.argv[1:])
