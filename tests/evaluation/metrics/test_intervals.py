"""Coverage and reproducibility of intervals."""

import numpy as np
import pytest

from audiolm_lite.evaluation.metrics.classification import score_labels
from audiolm_lite.evaluation.metrics.intervals import proportion_interval, rate_interval, ratio_interval


def test_interval_has_its_nominal_coverage():
    generator = np.random.default_rng(0)
    intervals = [ratio_interval(generator.random(80) < 0.3) for _ in range(100)]
    assert 88 <= sum(low <= 0.3 <= high for low, high in intervals) <= 100
    assert ratio_interval([1, 2], [10, 10]) == ratio_interval([1, 2], [10, 10])
    low, high = ratio_interval([0.0, 4.0], [1.0, 1.0])
    assert (low, high) == (0.0, 4.0)


@pytest.mark.parametrize("share", [0.03, 0.3, 0.95])
@pytest.mark.parametrize("items", [20, 84])
def test_proportions_are_covered(share, items):
    generator = np.random.default_rng(1)
    counts = generator.binomial(items, share, size=2000)
    intervals = {count: proportion_interval([1] * count + [0] * (items - count)) for count in set(counts.tolist())}
    covered = np.mean([intervals[count][0] <= share <= intervals[count][1] for count in counts.tolist()])
    assert 0.91 <= covered <= 0.99


def test_proportions_of_all_or_no_items_are_no_point():
    assert proportion_interval([1] * 84) == [pytest.approx(84 / (84 + 1.96**2), abs=1e-4), 1]
    assert proportion_interval([0] * 10) == [0, pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-4)]
    low, high = rate_interval([0] * 50, [9] * 50)  # a WER of 0
    assert low == 0 and 0.06 < high < 0.08
    assert rate_interval([1, 2, 0], [10, 10, 10]) == ratio_interval([1, 2, 0], [10, 10, 10])


def test_macro_f1_has_the_classes_of_each_resample():
    targets = ["a", "b", "c", "d"] * 3
    assert score_labels(targets, targets)["interval"]["macro_f1"] == [1, 1]
    assert score_labels(["a"] * 12, targets)["macro_f1"] == pytest.approx(0.4 / 4)


def test_macro_f1_is_covered():
    generator = np.random.default_rng(2)

    def draw(items):
        truth = generator.integers(0, 4, items)
        wrong = generator.random(items) < 0.3
        return [str(label) for label in truth], [str(label) for label in np.where(wrong, (truth + 1) % 4, truth)]

    expected, covered = 0.7, 0  # precision and recall of each class
    for _ in range(100):
        truth, predicted = draw(120)
        low, high = score_labels(predicted, truth)["interval"]["macro_f1"]
        covered += low <= expected <= high
    assert covered >= 89
