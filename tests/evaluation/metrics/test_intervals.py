"""Coverage and reproducibility of bootstrap intervals."""

import numpy as np

from audiolm_lite.evaluation.metrics.intervals import ratio_interval


def test_interval_has_its_nominal_coverage():
    generator = np.random.default_rng(0)
    intervals = [ratio_interval(generator.random(80) < 0.3) for _ in range(100)]
    assert 88 <= sum(low <= 0.3 <= high for low, high in intervals) <= 100
    assert ratio_interval([1, 2], [10, 10]) == ratio_interval([1, 2], [10, 10])
    low, high = ratio_interval([0.0, 4.0], [1.0, 1.0])
    assert (low, high) == (0.0, 4.0)
