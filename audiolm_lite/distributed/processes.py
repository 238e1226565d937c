"""The processes of a run: how many there are, and what they tell each other. With one process nothing communicates."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from audiolm_lite.config.errors import UserError


class PeerError(UserError, RuntimeError):
    """Another process failed, so this one ends too; the message has that one's rank and error."""


def start_process_group(device: str | None) -> str | None:
    """Join the process group that the launcher's environment describes (RANK, WORLD_SIZE, MASTER_ADDR ...).

    Parameters
    ----------
    device : str, optional
        What the command line asks for; None: a GPU where there is one.

    Returns
    -------
    str or None
        The device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    local = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.is_available() and (device is None or device.startswith("cuda")):
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl")  # what the processes agree on stays on the CPU
    else:
        device = device or "cpu"
        if not dist.is_initialized():
            dist.init_process_group("gloo")
    return device


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return rank() == 0


def gather(value: Any) -> list:
    """`value` of every process, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(error: Exception | None = None, **flags: bool) -> dict[str, bool]:
    """Which flags any process has set. Where one process has an error, all raise, so that none waits for it.

    Raises
    ------
    Exception
        The process's own `error`.
    PeerError
        Another one's.
    """
    if error is not None and world_size() == 1:
        raise error
    votes = gather({"error": error and f"{type(error).__name__}: {error}", **flags})
    if error is not None:
        raise error
    for number, vote in enumerate(votes):
        if vote["error"]:
            raise PeerError(f"process {number} of {world_size()} failed, so all stop: {vote['error']}")
    return {name: any(vote[name] for vote in votes) for name in flags}


def sum_over_processes(sums: Tensor) -> Tensor:
    """Sum of a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums
