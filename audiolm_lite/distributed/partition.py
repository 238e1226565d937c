"""Which part of a job, such as a feature extraction, a process does: all of it, that of its rank, or `--shard i/n`.

Processes with a partition need no process group: they communicate by the files they write.
"""

import re
from typing import NamedTuple

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.distributed.processes import launched_rank, launched_world_size


class Partition(NamedTuple):
    """A part of a job: every `world_size`-th of its items, from item `rank` on.

    Attributes
    ----------
    rank, world_size : int
        Index of the part, from 0, and the number of parts.
    finishes : bool
        Whether this process also does what follows when all parts are done.
    """

    rank: int
    world_size: int
    finishes: bool


def parse_partition(shard: str | None) -> Partition:
    """Return the partition that a command asks for.

    Parameters
    ----------
    shard : str, optional
        "i/n": the i-th of n parts, counted from 1. None: the part of the rank that the launcher (such as torchrun)
        gave this process, or the whole job without a launcher.

    Raises
    ------
    ConfigError
        `shard` has another form.

    Examples
    --------
    >>> parse_partition("3/8")
    Partition(rank=2, world_size=8, finishes=False)
    """
    if shard is None:
        rank = launched_rank()
        return Partition(rank, launched_world_size(), finishes=rank == 0)
    parsed = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not parsed or not 1 <= int(parsed[1]) <= int(parsed[2]):
        raise ConfigError(f"shard is {shard!r}; write I/N with I from 1 to N, for example 1/8")
    return Partition(int(parsed[1]) - 1, int(parsed[2]), finishes=False)
