"""The processes of a run: how many there are, and how they communicate. A single process needs no process group.

A launcher such as torchrun describes the processes in environment variables, which the functions `launched_...` read.
`rank`, `world_size` and all functions that communicate use the process group, which `start_process_group` joins.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from audiolm_lite.config.errors import UserError

T = TypeVar("T")
_ALIVE_SECONDS = 60.0


class PeerError(UserError, RuntimeError):
    """Another process failed, so this process stops too; the message has the rank and the error of that process."""


def launched_rank() -> int:
    """Rank that the launcher gave this process (RANK), 0 without a launcher.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {"RANK": "3"}):
    ...     launched_rank()
    3
    """
    return int(os.environ.get("RANK", 0))


def launched_world_size() -> int:
    """Number of processes that the launcher started (WORLD_SIZE), 1 without a launcher.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {"WORLD_SIZE": "8"}):
    ...     launched_world_size()
    8
    """
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Number of this process on its machine (LOCAL_RANK), which is also that of its GPU; 0 without a launcher.

    Examples
    --------
    >>> from unittest.mock import patch
    >>> with patch.dict(os.environ, {"LOCAL_RANK": "1"}):
    ...     local_rank()
    1
    """
    return int(os.environ.get("LOCAL_RANK", 0))


def start_process_group(device: str | None) -> str | None:
    """Join the process group of the launcher (RANK, WORLD_SIZE, MASTER_ADDR ...); does nothing for a single process.

    Parameters
    ----------
    device : str, optional
        Device given on the command line; None: a GPU if there is one.

    Returns
    -------
    str or None
        Device of this process: with several processes, the GPU of its local rank or the CPU.

    Examples
    --------
    >>> start_process_group("cuda:1")  # without a launcher
    'cuda:1'
    """
    if launched_world_size() == 1:
        return device
    if torch.cuda.is_available() and (device is None or device.startswith("cuda")):
        device = f"cuda:{local_rank()}"
        torch.cuda.set_device(local_rank())
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl")  # flags and errors are exchanged on the CPU
    else:
        device = device or "cpu"
        if not dist.is_initialized():
            dist.init_process_group("gloo")
    return device


def wait_for_all_ranks() -> None:
    """Return when all launched processes have called this; they need no process group. Returns at once for one."""
    if launched_world_size() == 1:
        return
    # One rank may have much more to do than another.
    dist.init_process_group("gloo", timeout=timedelta(days=30))
    dist.barrier()
    dist.destroy_process_group()


def rank() -> int:
    """Rank of this process in the process group, 0 without one.

    Examples
    --------
    >>> rank()  # without a process group
    0
    """
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes in the process group, 1 without one.

    Examples
    --------
    >>> world_size()  # without a process group
    1
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and prints.

    Examples
    --------
    >>> is_main()  # without a process group
    True
    """
    return rank() == 0


def gather(value: T) -> list[T]:
    """Return `value` of every process, in the order of their ranks.

    Examples
    --------
    >>> gather({"clips": 12})  # one process
    [{'clips': 12}]
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_rank(error: Exception | None = None, **flags: bool) -> dict[str, bool]:
    """Return which flags any process has set; where one process has an error, all raise, so that none waits for it.

    Parameters
    ----------
    error : Exception, optional
        What failed in this process.
    **flags
        Flags of this process, the same names in every process.

    Raises
    ------
    Exception
        The process's own `error`.
    PeerError
        Another process has an error.

    Examples
    --------
    >>> any_rank(save=True, stop=False)
    {'save': True, 'stop': False}
    """
    if world_size() == 1:
        if error is not None:
            raise error
        return flags
    # Called at every optimiser step, so numbers are exchanged; objects, which are pickled, only if there is an error.
    failed, *votes = sum_numbers([int(error is not None), *map(int, flags.values())])
    if failed:
        messages = gather(error and f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        number, message = next((number, text) for number, text in enumerate(messages) if text)
        raise PeerError(f"process {number} of {world_size()} failed, so all stop: {message}")
    return {name: vote > 0 for name, vote in zip(flags, votes)}


def run_in_main(work: Callable[[Callable[[], None]], T]) -> T | None:
    """Run a long job in the main process, while the others wait; if it fails, all raise.

    Parameters
    ----------
    work : callable
        Takes a function `alive`, which it calls every few minutes at least: the other processes would otherwise stop
        with a time-out of the process group.

    Returns
    -------
    object or None
        The result of `work`; None in the other processes.

    Raises
    ------
    Exception
        As in `any_rank`.

    Examples
    --------
    >>> run_in_main(lambda alive: "done")  # one process
    'done'
    """
    if not is_main():
        while not any_rank(done=False)["done"]:
            pass
        return None
    last = time.monotonic()

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last > _ALIVE_SECONDS:
            any_rank(done=False)
            last = time.monotonic()

    try:
        result = work(alive)
    except Exception as error:
        any_rank(error, done=True)
        raise
    any_rank(done=True)
    return result


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Copy the main process's values of tensors into those of the other processes, in place.

    Examples
    --------
    >>> copy_from_main([torch.zeros(2)])  # one process: nothing to do
    """
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def sum_numbers(numbers: Sequence[float]) -> list[float]:
    """Sums of numbers over all processes, in double precision.

    Examples
    --------
    >>> sum_numbers([2.0, 5.0])  # one process
    [2.0, 5.0]
    """
    if world_size() == 1:
        return list(numbers)
    on_cpu = "cpu:" in dist.get_backend_config()  # else a group for GPUs only, which a launcher may have started
    device = "cpu" if on_cpu else torch.cuda.current_device()
    return sum_over_processes(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()


def sum_over_processes(sums: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place.

    Examples
    --------
    >>> sum_over_processes(torch.tensor([2.0, 5.0]))  # one process
    tensor([2., 5.])
    """
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums
