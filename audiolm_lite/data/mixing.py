"""Mixing manifests: how often the rows of each one appear in an epoch."""

from collections.abc import Sequence

import numpy as np

from audiolm_lite.config.errors import ConfigError


class Mixture:
    """Rows of several manifests in given shares, in turn: no row comes again before all of its manifest have come.

    An epoch takes the next rows of each manifest's own endless sequence of random orders, so a manifest with a small
    share is heard whole over several epochs, and one with a large share is repeated evenly.

    Parameters
    ----------
    sizes : sequence of int
        Items of each manifest; those of the first come first in the dataset, and so on.
    weights : sequence of float
        Share of each manifest in an epoch, relative to the others.
    seed : int

    Attributes
    ----------
    counts : list of int
        Items of each manifest in an epoch, at least one; together about as many as there are.

    Raises
    ------
    ValueError
        A weight is not positive, their number is another than that of the manifests, or a manifest has no item.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int = 0):
        if len(sizes) != len(weights) or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"mixing: {len(sizes)} manifests need as many weights > 0, not {list(weights)}.")
        if 0 in sizes:
            raise ValueError(
                f"mixing: manifest {list(sizes).index(0) + 1} of {len(sizes)} has no item of the tasks asked for; "
                "take it out of the list."
            )
        self.sizes, self.seed = list(sizes), seed
        self.counts = [max(1, round(sum(sizes) * weight / sum(weights))) for weight in weights]

    def epoch(self, epoch: int) -> np.ndarray:
        """Items [N] int64 of an epoch, those of the first manifest first; an item may come several times."""
        first, items = 0, []
        for number, (size, count) in enumerate(zip(self.sizes, self.counts)):
            begin, end = epoch * count, (epoch + 1) * count
            turns = range(begin // size, -(-end // size))
            orders = [np.random.default_rng((self.seed, number, turn)).permutation(size) for turn in turns]
            place = begin - turns[0] * size
            items.append(first + np.concatenate(orders)[place : place + count])
            first += size
        return np.concatenate(items)

    def describe(self, names: Sequence[str], lengths: np.ndarray, epoch: int = 1) -> str:
        """The parts of each manifest in the rows and tokens of an epoch, in words; `lengths` [items] in tokens."""
        of_items = np.split(lengths[self.epoch(epoch)], np.cumsum(self.counts)[:-1])
        tokens = [int(part.sum(dtype=np.int64)) for part in of_items]
        return "; ".join(
            f"{name}: {count} of {size} rows ({100 * count / sum(self.counts):.1f} %), "
            f"{part} tokens ({100 * part / sum(tokens):.1f} %)"
            for name, count, size, part in zip(names, self.counts, self.sizes, tokens)
        )


def temperature_weights(sizes: Sequence[int], temperature: float) -> list[float]:
    """Weights that grow as size ** (1 / temperature): 1 leaves the sizes' own shares, many makes all equal.

    Raises
    ------
    ConfigError
        The temperature is below 1.
    """
    if not temperature >= 1:
        raise ConfigError(f"mixing_temperature is {temperature}; it must be 1 (shares as the sizes) or more.")
    return [size ** (1 / temperature) for size in sizes]
