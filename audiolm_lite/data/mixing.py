"""Mixing of manifests: how many rows of each manifest an epoch contains."""

from collections.abc import Sequence

import numpy as np

from audiolm_lite.config.errors import ConfigError


class Mixture:
    """Items of several manifests in given proportions; no item is repeated before all of its manifest were used.

    Each manifest has its own endless sequence of random orders, and an epoch takes the next items of it. All items of a
    manifest with a small weight are used over several epochs; those of one with a large weight repeat evenly.

    Parameters
    ----------
    sizes : sequence of int
        Items of each manifest, in the order of the dataset.
    weights : sequence of float
        Weight of each manifest; only their ratios matter.
    seed : int
        Seed of the orders.

    Attributes
    ----------
    counts : list of int
        Items of each manifest in an epoch, at least one; their sum is about the number of all items.

    Raises
    ------
    ValueError
        A weight is not positive, there are not as many weights as manifests, or a manifest has no item.

    Examples
    --------
    >>> Mixture([900, 100], weights=[1, 1]).counts
    [500, 500]
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int = 0):
        if len(sizes) != len(weights) or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"mixing: {len(sizes)} manifests need as many weights > 0, not {list(weights)}.")
        if 0 in sizes:
            raise ValueError(
                f"mixing: manifest {list(sizes).index(0) + 1} of {len(sizes)} has no item of the selected tasks; "
                "remove it from the list."
            )
        self.sizes, self.seed = list(sizes), seed
        self.counts = [max(1, round(sum(sizes) * weight / sum(weights))) for weight in weights]

    def epoch(self, epoch: int) -> np.ndarray:
        """Return the item indices [N] int64 of an epoch, manifest by manifest; an item may occur several times."""
        first_item, items = 0, []
        for manifest, (size, count) in enumerate(zip(self.sizes, self.counts)):
            begin, end = epoch * count, (epoch + 1) * count  # in the endless sequence
            rounds = range(begin // size, -(-end // size))
            orders = [np.random.default_rng((self.seed, manifest, number)).permutation(size) for number in rounds]
            offset = begin - rounds[0] * size
            items.append(first_item + np.concatenate(orders)[offset : offset + count])
            first_item += size
        return np.concatenate(items)

    def describe(self, names: Sequence[str], lengths: np.ndarray, epoch: int = 1) -> str:
        """Describe the rows and tokens of each manifest in an epoch; `lengths` are the tokens [items] of all items."""
        by_manifest = np.split(lengths[self.epoch(epoch)], np.cumsum(self.counts)[:-1])
        tokens = [int(selected.sum(dtype=np.int64)) for selected in by_manifest]
        return "; ".join(
            f"{name}: {count} of {size} rows ({100 * count / sum(self.counts):.1f} %), "
            f"{own} tokens ({100 * own / sum(tokens):.1f} %)"
            for name, count, size, own in zip(names, self.counts, self.sizes, tokens)
        )


def temperature_weights(sizes: Sequence[int], temperature: float) -> list[float]:
    """Compute weights proportional to size ** (1 / temperature).

    At 1, manifests keep the proportions of their sizes; at a high temperature all manifests have the same weight.

    Raises
    ------
    ConfigError
        The temperature is below 1.

    Examples
    --------
    >>> temperature_weights([900, 100], temperature=2)
    [30.0, 10.0]
    """
    if not temperature >= 1:
        raise ConfigError(
            f"mixing_temperature is {temperature}; it must be at least 1, at which the sizes decide the proportions."
        )
    return [size ** (1 / temperature) for size in sizes]
