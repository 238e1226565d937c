"""Optimisers by name, and learning rates as a function of the step alone, so that a resumed run needs no scheduler."""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import torch

from audiolm_lite.config.errors import ConfigError

# Classes of bitsandbytes: moments in 8 bits (Dettmers et al. 2022, arXiv 2110.02861), or paged to the host's memory
# where that of the GPU is full (Dettmers et al. 2023, arXiv 2305.14314).
_BITSANDBYTES = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw_8bit": "PagedAdamW8bit"}


def build_optimizer(name: str, groups: list[dict[str, Any]], betas: Sequence[float]) -> torch.optim.Optimizer:
    """Build AdamW from torch or bitsandbytes.

    Parameters
    ----------
    name : str
        One of `config.keys.OPTIMIZERS`.
    groups : list of dict
        See `parameter_groups`.
    betas : sequence of float

    Raises
    ------
    ConfigError
        The optimiser needs an NVIDIA GPU or bitsandbytes, which is missing.

    Examples
    --------
    >>> groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.1, "weight_decay": 0.0}]
    >>> optimizer = build_optimizer("adamw", groups, betas=(0.9, 0.95))
    >>> type(optimizer).__name__, optimizer.param_groups[0]["betas"]
    ('AdamW', (0.9, 0.95))
    """
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"betas is {list(betas)}; write two numbers of at least 0 and below 1, such as [0.9, 0.999]")
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=(betas[0], betas[1]))
    if not torch.cuda.is_available():
        raise ConfigError(f"optimizer {name} needs an NVIDIA GPU, and none is available: use adamw")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"optimizer {name} needs bitsandbytes: pip install bitsandbytes")
    import bitsandbytes

    return getattr(bitsandbytes.optim, _BITSANDBYTES[name])(groups, betas=tuple(betas))


def learning_rate_factor(step: int, *, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of optimiser step number `step` (from 0), as a fraction of the peak.

    Warm-up is linear and reaches 1 at its last step. "linear" and "cosine" then decay, to 0 one step after the last.

    Examples
    --------
    >>> [learning_rate_factor(step, schedule="linear", warmup_steps=2, total_steps=6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return max(0.0, 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))))


def require_peak(groups: Sequence[dict[str, Any]], total_steps: int) -> None:
    """Refuse a warm-up that is longer than the run, whose learning rate would never reach its peak.

    Raises
    ------
    ConfigError
        The message has the steps of the warm-up and of the run.

    Examples
    --------
    >>> require_peak([{"warmup_steps": 100}], total_steps=100)
    >>> require_peak([{"warmup_steps": 101}], total_steps=100)
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: warmup_steps is 101, and the run has only 100 optimiser steps, ...
    """
    warmup = max(group["warmup_steps"] for group in groups)
    if warmup > total_steps:
        raise ConfigError(
            f"warmup_steps is {warmup}, and the run has only {total_steps} optimiser steps, so the learning rate would "
            f"never reach its peak; set warmup_steps to {total_steps // 10}, a tenth of the run, or raise epochs"
        )


def set_learning_rates(groups: Sequence[dict[str, Any]], step: int, total_steps: int) -> None:
    """Set the learning rate of each optimiser group for a step, from its peak (`initial_lr`), schedule and warm-up.

    Examples
    --------
    >>> groups = [{"initial_lr": 0.1, "schedule": "linear", "warmup_steps": 2}]
    >>> set_learning_rates(groups, step=4, total_steps=6)
    >>> groups[0]["lr"]
    0.05
    """
    for group in groups:
        factor = learning_rate_factor(
            step, schedule=group["schedule"], warmup_steps=group["warmup_steps"], total_steps=total_steps
        )
        group["lr"] = group["initial_lr"] * factor
