"""Bootstrap confidence intervals over test items (Efron 1979; for WER: Bisani and Ney, ICASSP 2004)."""

from collections.abc import Callable, Sequence

import numpy as np

# Resampling counts of one block, float64: at most 32 MB.
_COUNTS_PER_BLOCK = 4_000_000


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    items: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 1986,
) -> list[float]:
    """Percentile interval of a statistic under resampling of the test items with replacement.

    Parameters
    ----------
    statistic : callable
        Maps counts [R, items] (how often each item was drawn in each of R resamples, float64) to values [R].
    items : int
        Number of test items: utterances, captions or answers, not words.
    resamples : int
        Number of resamples.
    level : float
        Coverage of the interval.
    seed : int
        The same seed gives the same interval, and the same resamples for two systems on one test set.

    Returns
    -------
    list of float
        [low, high].

    Examples
    --------
    >>> values = np.array([0.0, 1.0])
    >>> bootstrap(lambda counts: counts @ values / 2, items=2)  # the mean; each item may be drawn twice
    [0.0, 1.0]
    """
    generator = np.random.default_rng(seed)
    block = max(1, _COUNTS_PER_BLOCK // items)
    uniform = np.full(items, 1 / items)
    values = np.concatenate(
        [
            statistic(generator.multinomial(items, uniform, size=min(block, resamples - start)).astype(np.float64))
            for start in range(0, resamples, block)
        ]
    )
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def ratio_interval(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray | None = None
) -> list[float]:
    """95 % interval of sum(numerators) / sum(denominators) over items, or of the mean without denominators.

    WER is such a ratio (errors / reference words); accuracy and mean absolute error are means.

    Parameters
    ----------
    numerators, denominators : sequence of float
        One value per item.

    Returns
    -------
    list of float
        [low, high].

    Examples
    --------
    >>> ratio_interval([0, 4], [1, 1])  # each item may be drawn twice
    [0.0, 4.0]
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, dtype=np.float64)

    def ratio(counts: np.ndarray) -> np.ndarray:
        total = counts @ bottom
        return np.divide(counts @ top, total, out=np.full(len(counts), np.nan), where=total > 0)

    return bootstrap(ratio, len(top))
