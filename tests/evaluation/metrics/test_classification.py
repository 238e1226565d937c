"""Mapping of answers to labels, and accuracy and F1 against manual counts and scikit-learn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.evaluation.metrics.classification import match_label, score_classification

SOUNDS = {
    "siren": ["siren"],
    "police": ["police siren"],
    "dog": ["dog", "dog bark"],
    "male": ["male", "a man"],
    "female": ["female"],
}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("dog", "dog"),
        ("I hear a Dog_bark.", "dog"),
        ("A police siren!", "police"),  # the siren inside it is not a mention
        ("a siren, then a police siren", None),
        ("this is a man speaking", "male"),
        ("female", "female"),  # not the "male" inside it
        ("a dog or a siren", None),
        ("hotdog", None),
        ("", None),
    ],
)
def test_answers_are_mapped_to_labels_by_the_documented_rule(answer, label):
    assert match_label(answer, SOUNDS) == label


def test_scores_of_a_manually_counted_case():
    targets = ["dog", "dog", "dog", "cat"]
    scores = score_classification(targets, ["dog", "a dog", "", "a cat or a dog"], ["dog", "cat", "rain"])
    assert scores["accuracy"] == 0.5 and scores["unparsed"] == 2 and scores["items"] == 4
    assert scores["majority_accuracy"] == 0.75
    assert scores["per_class"]["dog"] == {"precision": 1.0, "recall": 2 / 3, "f1": pytest.approx(0.8), "items": 3}
    assert scores["per_class"]["cat"]["f1"] == 0 and "rain" not in scores["per_class"]
    assert scores["macro_f1"] == pytest.approx(0.4)
    labels_per_item = score_classification(["yes", "dog"], ["yes, a dog", "dog"], [["yes", "no"], ["dog", "cat"]])
    assert labels_per_item["accuracy"] == 1
    with pytest.raises(ValueError, match="cow"):
        score_classification(["cow"], ["cow"], ["dog"])


@settings(deadline=None)  # imports and a busy machine take longer
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "", "a b"])), min_size=1, max_size=30)
)
def test_macro_f1_equals_scikit_learn(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    targets, answers = map(list, zip(*pairs))
    classes = sorted(set(targets))
    predicted = [answer if answer in ("a", "b", "c") else "none" for answer in answers]
    expected = sklearn.f1_score(targets, predicted, labels=classes, average="macro", zero_division=0)
    assert score_classification(targets, answers, ["a", "b", "c"])["macro_f1"] == pytest.approx(expected)
