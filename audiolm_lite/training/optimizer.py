"""Optimisers by name, and the learning rate as a pure function of the step: a resumed run needs only its number."""

import importlib.util
import math
from collections.abc import Sequence

import torch

from audiolm_lite.config.errors import ConfigError

# bitsandbytes' classes: moments in 8 bits (Dettmers et al. 2022, arXiv 2110.02861), or paged out to the host's memory
# when the GPU's is full (Dettmers et al. 2023, arXiv 2305.14314).
_BITSANDBYTES = {"adamw_8bit": "AdamW8bit", "paged_adamw": "PagedAdamW", "paged_adamw_8bit": "PagedAdamW8bit"}


def build_optimizer(name: str, groups: list[dict], betas: Sequence[float]) -> torch.optim.Optimizer:
    """AdamW as torch or bitsandbytes has it; `name` is one of `config.keys.OPTIMIZERS`.

    Raises
    ------
    ConfigError
        It needs bitsandbytes or an NVIDIA GPU, and there is none.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=tuple(betas))
    if not torch.cuda.is_available():
        raise ConfigError(f"optimizer {name} needs an NVIDIA GPU, and there is none: use adamw")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"optimizer {name} needs bitsandbytes: pip install bitsandbytes")
    import bitsandbytes

    return getattr(bitsandbytes.optim, _BITSANDBYTES[name])(groups, betas=tuple(betas))


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


def set_learning_rates(groups: Sequence[dict], step: int, total_steps: int) -> None:
    """Give every optimiser group its rate at a step, by its own peak (`initial_lr`), schedule and warm-up."""
    for group in groups:
        factor = learning_rate_factor(
            step, schedule=group["schedule"], warmup_steps=group["warmup_steps"], total_steps=total_steps
        )
        group["lr"] = group["initial_lr"] * factor
