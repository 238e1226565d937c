"""Scores of answers that name several labels, against manual counts and scikit-learn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.evaluation.metrics.multi_label import score_multi_label


def test_scores_of_a_manually_counted_case():
    """Names of AudioSet contain each other and commas; a semicolon separates labels."""
    labels = ["speech", "male speech, man speaking", "dog", "rain", "car", "alarm", "car alarm"]
    targets = [["speech", "dog"], ["rain"], ["car", "alarm"], ["male speech, man speaking"]]
    answers = ["dog; speech; rain", "nothing", "Car; alarm", "male speech, man speaking"]
    scores = score_multi_label(targets, answers, labels)
    # correct / named / target labels per item: 2 / 3 / 2, 0 / 0 / 1, 2 / 2 / 2, 1 / 1 / 1
    assert scores["precision"] == pytest.approx((2 / 3 + 0 + 1 + 1) / 4)
    assert scores["recall"] == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert scores["f1"] == pytest.approx((4 / 5 + 0 + 1 + 1) / 4)
    assert scores["micro_f1"] == pytest.approx(2 * 5 / (6 + 6))
    assert scores["macro_f1"] == pytest.approx(5 / 6)  # all but rain, which is named in the wrong item only
    assert (scores["exact"], scores["unparsed"], scores["items"]) == (0.5, 1, 4)
    assert scores["per_class"]["rain"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "items": 1}
    assert "car alarm" not in scores["per_class"]
    inside = score_multi_label([["car alarm"]], ["A car alarm sounds."], labels)
    assert inside["exact"] == 1  # neither the car nor the alarm inside it
    low, high = scores["interval"]["micro_f1"]
    assert 0 <= low <= scores["micro_f1"] <= high <= 1


@pytest.mark.parametrize(
    ("targets", "labels", "message"),
    [([[]], None, "item 0: it has no label"), ([["cow"]], ["dog"], "'cow' is not among"), ([], None, "0 targets")],
)
def test_input_that_cannot_be_scored_is_refused(targets, labels, message):
    with pytest.raises(ValueError, match=message):
        score_multi_label(targets, ["dog"], labels)


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.sets(st.sampled_from("abcd"), min_size=least) for least in (1, 0)]), min_size=1))
def test_scores_equal_scikit_learn(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    target, predicted = ([[name in group for name in "abcd"] for group in groups] for groups in zip(*pairs))
    scores = score_multi_label([sorted(t) for t, _ in pairs], ["; ".join(sorted(a)) for _, a in pairs], list("abcd"))
    for ours, average in (("f1", "samples"), ("micro_f1", "micro")):
        assert scores[ours] == pytest.approx(sklearn.f1_score(target, predicted, average=average, zero_division=0))
    for ours, theirs in (("precision", sklearn.precision_score), ("recall", sklearn.recall_score)):
        assert scores[ours] == pytest.approx(theirs(target, predicted, average="samples", zero_division=0))
    classes = [i for i in range(4) if any(group[i] for group in target)]
    expected = sklearn.f1_score(target, predicted, average="macro", labels=classes, zero_division=0)
    assert scores["macro_f1"] == pytest.approx(expected)
    assert scores["exact"] == pytest.approx(sklearn.accuracy_score(target, predicted))
