"""Which share of an extraction a process computes: all of it, one rank's of torchrun, or one of `--shard i/n`."""

import os
import re
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from audiolm_lite.config.errors import ConfigError


class Share(NamedTuple):
    """A share of the sorted keys.

    Attributes
    ----------
    rank, world_size : int
        This share, from 0, and how many there are.
    goes_on : bool
        Whether this process does what comes after all shares.
    """

    rank: int
    world_size: int
    goes_on: bool


def share_of(shard: str | None) -> Share:
    """Share that `shard`, "i/n" with i from 1 to n, asks for; without it torchrun's rank, or all.

    Raises
    ------
    ConfigError
        `shard` is written otherwise.
    """
    if shard is not None:
        parsed = re.fullmatch(r"(\d+)/(\d+)", shard)
        if not parsed or not 1 <= int(parsed[1]) <= int(parsed[2]):
            raise ConfigError(f"shard is {shard!r}; write I/N, the shares counting from 1: 1/8, 2/8 ... 8/8")
        return Share(int(parsed[1]) - 1, int(parsed[2]), goes_on=False)
    if dist.is_torchelastic_launched():
        rank = int(os.environ["RANK"])
        return Share(rank, int(os.environ["WORLD_SIZE"]), goes_on=rank == 0)
    return Share(0, 1, goes_on=True)


def wait_for_all_ranks() -> None:
    """Return when all ranks of torchrun have called this, at once without torchrun."""
    if not dist.is_torchelastic_launched():
        return
    # One rank may have much more to do than another.
    dist.init_process_group("gloo", timeout=timedelta(days=30))
    dist.barrier()
    dist.destroy_process_group()
