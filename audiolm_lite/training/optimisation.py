"""The learning rate as a pure function of the step, so that a resumed run needs nothing but the step's number."""

import math
from collections.abc import Mapping, Sequence


def learning_rate_factor(step: int, *, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak learning rate that optimiser step number `step` (from 0) uses.

    Warm-up rises linearly and reaches 1 with the last warm-up step; "linear" and "cosine" then fall so that they would
    reach 0 one step after the last.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return max(0.0, 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))


def set_learning_rates(groups: Sequence[Mapping], factor: float) -> None:
    """Give every optimiser group `factor` times its peak (`initial_lr`)."""
    for group in groups:
        group["lr"] = group["initial_lr"] * factor
