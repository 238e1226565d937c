"""Confidence intervals over test items.

Proportions have Wilson's interval (1927), which does not shrink to a point where all items are right. Other scores have
a bootstrap interval (Efron 1979; for WER: Bisani and Ney, ICASSP 2004).
"""

from collections.abc import Callable, Sequence

import numpy as np

# Resampling counts of one block, float64: at most 32 MB.
_COUNTS_PER_BLOCK = 4_000_000


# Quantile of the normal distribution for 95 %, two-sided.
_Z = 1.959963984540054


def proportion_interval(hits: Sequence[float] | np.ndarray) -> list[float]:
    """95 % interval of the share of items that are 1, by Wilson.

    Parameters
    ----------
    hits : sequence of float
        0 or 1 per item.

    Returns
    -------
    list of float
        [low, high].

    Examples
    --------
    >>> [round(end, 3) for end in proportion_interval([1] * 84)]
    [0.956, 1.0]
    """
    count, share = len(hits), float(np.mean(np.asarray(hits, dtype=np.float64)))
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * np.sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2) / (1 + _Z**2 / count)
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return [0.0 if share == 0 else low, 1.0 if share == 1 else high]


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


def rate_interval(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray | None = None
) -> list[float]:
    """`ratio_interval` of a score with the range 0 to 1, or that counts errors from 0, such as WER.

    If all items have 0, or all have 1, every resample has the same score. The interval then has Wilson's bound on the
    share of other items, whose scores may be anything in that range.

    Examples
    --------
    >>> [round(end, 3) for end in rate_interval([0] * 96, [10] * 96)]  # no word error in 96 utterances
    [0.0, 0.038]
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, dtype=np.float64)
    if (top == 0).all() or (top == bottom).all():
        return proportion_interval(top[bottom > 0] > 0 if (bottom > 0).any() else top > 0)
    return ratio_interval(top, bottom)


def ratio_interval(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray | None = None
) -> list[float]:
    """95 % interval of sum(numerators) / sum(denominators) over items, or of the mean without denominators.

    Mean absolute error is a mean; `rate_interval` is for scores between 0 and 1.

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
