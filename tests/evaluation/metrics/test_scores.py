"""Metrics against cases counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.evaluation.metrics.asr import score_asr
from audiolm_lite.evaluation.metrics.classification import match_label, score_classification
from audiolm_lite.evaluation.metrics.intervals import ratio_interval
from audiolm_lite.evaluation.metrics.multi_label import score_multi_label
from audiolm_lite.evaluation.metrics.regression import parse_number, score_regression

SOUNDS = {
    "siren": ["siren"],
    "police": ["police siren"],
    "dog": ["dog", "dog bark"],
    "male": ["male", "a man"],
    "female": ["female"],
}


def test_wer_counts_each_kind_of_error():
    scores = score_asr(["a b c d", "e f"], ["a x c", "e f g"], normaliser="none")
    assert scores["wer"] == 3 / 6
    assert (scores["substitutions"], scores["deletions"], scores["insertions"], scores["words"]) == (1, 1, 1, 6)
    assert scores["cer"] == pytest.approx((1 + 2 + 2) / 10)  # b -> x, " d" lost, " g" added; 7 + 3 characters


def test_an_empty_hypothesis_loses_every_word_and_an_empty_reference_only_earns_insertions():
    scores = score_asr(["a b", ""], ["", "c"], normaliser="none")
    assert (scores["deletions"], scores["insertions"], scores["wer"]) == (2, 1, 1.5)


def test_normalisers_are_what_their_names_say():
    reference, hypothesis = ["Mr. O'Neil can't pay $20!"], ["mister o'neil cannot pay 20 dollars"]
    assert score_asr(reference, hypothesis, "none")["wer"] > 0.5
    english = score_asr(["Mr. Brown can't pay twenty dollars!"], ["mister brown can not pay $20"], "whisper_english")
    assert english["wer"] == 0
    assert score_asr(["Привет, мир!"], ["привет мир"], "basic")["wer"] == 0
    with pytest.raises(ValueError, match="whisper_english"):
        score_asr(["a"], ["a"], "english")


def test_wer_refuses_what_cannot_be_scored():
    with pytest.raises(ValueError, match="2 references but 1"):
        score_asr(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no reference holds a word"):
        score_asr(["...", ""], ["a", "b"], "basic")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("dog", "dog"),
        ("I hear a Dog_bark.", "dog"),
        ("A police siren!", "police"),  # the siren inside it is no mention of its own
        ("a siren, then a police siren", None),
        ("this is a man speaking", "male"),
        ("female", "female"),  # not the "male" within it
        ("a dog or a siren", None),
        ("hotdog", None),
        ("", None),
    ],
)
def test_answers_become_labels_by_the_documented_rule(answer, label):
    assert match_label(answer, SOUNDS) == label


def test_classification_by_hand():
    targets = ["dog", "dog", "dog", "cat"]
    scores = score_classification(targets, ["dog", "a dog", "", "a cat or a dog"], ["dog", "cat", "rain"])
    assert scores["accuracy"] == 0.5 and scores["unparsed"] == 2 and scores["items"] == 4
    assert scores["majority_accuracy"] == 0.75
    assert scores["per_class"]["dog"] == {"precision": 1.0, "recall": 2 / 3, "f1": pytest.approx(0.8), "items": 3}
    assert scores["per_class"]["cat"]["f1"] == 0 and "rain" not in scores["per_class"]
    assert scores["macro_f1"] == pytest.approx(0.4)
    each_its_own = score_classification(["yes", "dog"], ["yes, a dog", "dog"], [["yes", "no"], ["dog", "cat"]])
    assert each_its_own["accuracy"] == 1
    with pytest.raises(ValueError, match="cow"):
        score_classification(["cow"], ["cow"], ["dog"])


@settings(deadline=None)  # imports and a busy machine are no failure
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "", "a b"])), min_size=1, max_size=30)
)
def test_f1_equals_scikit_learn(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    targets, answers = map(list, zip(*pairs))
    classes = sorted(set(targets))
    answered = [answer if answer in ("a", "b", "c") else "none" for answer in answers]
    expected = sklearn.f1_score(targets, answered, labels=classes, average="macro", zero_division=0)
    assert score_classification(targets, answers, ["a", "b", "c"])["macro_f1"] == pytest.approx(expected)


def test_several_labels_by_hand():
    """AudioSet's names hold one another and commas; a semicolon separates."""
    labels = ["speech", "male speech, man speaking", "dog", "rain", "car", "alarm", "car alarm"]
    targets = [["speech", "dog"], ["rain"], ["car", "alarm"], ["male speech, man speaking"]]
    answers = ["dog; speech; rain", "nothing", "Car; alarm", "male speech, man speaking"]
    scores = score_multi_label(targets, answers, labels)
    # right of named of asked for: 2 of 3 of 2, 0 of 0 of 1, 2 of 2 of 2, 1 of 1 of 1
    assert scores["precision"] == pytest.approx((2 / 3 + 0 + 1 + 1) / 4)
    assert scores["recall"] == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert scores["f1"] == pytest.approx((4 / 5 + 0 + 1 + 1) / 4)
    assert scores["micro_f1"] == pytest.approx(2 * 5 / (6 + 6))
    assert scores["macro_f1"] == pytest.approx(5 / 6)  # all but rain, which is named where it is not
    assert (scores["exact"], scores["unparsed"], scores["items"]) == (0.5, 1, 4)
    assert scores["per_class"]["rain"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "items": 1}
    assert "car alarm" not in scores["per_class"]
    inside = score_multi_label([["car alarm"]], ["A car alarm sounds."], labels)
    assert inside["exact"] == 1  # neither the car nor the alarm in it
    low, high = scores["interval"]["micro_f1"]
    assert 0 <= low <= scores["micro_f1"] <= high <= 1


@pytest.mark.parametrize(
    ("targets", "labels", "message"),
    [([[]], None, "item 0 has no label"), ([["cow"]], ["dog"], "'cow' is not among"), ([], None, "0 targets")],
)
def test_several_labels_refuse_what_cannot_be_scored(targets, labels, message):
    with pytest.raises(ValueError, match=message):
        score_multi_label(targets, ["dog"], labels)


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.sets(st.sampled_from("abcd"), min_size=least) for least in (1, 0)]), min_size=1))
def test_scores_of_several_labels_equal_scikit_learn(pairs):
    sklearn = pytest.importorskip("sklearn.metrics")
    asked, named = ([[name in group for name in "abcd"] for group in groups] for groups in zip(*pairs))
    scores = score_multi_label([sorted(t) for t, _ in pairs], ["; ".join(sorted(a)) for _, a in pairs], list("abcd"))
    for ours, average in (("f1", "samples"), ("micro_f1", "micro")):
        assert scores[ours] == pytest.approx(sklearn.f1_score(asked, named, average=average, zero_division=0))
    for ours, theirs in (("precision", sklearn.precision_score), ("recall", sklearn.recall_score)):
        assert scores[ours] == pytest.approx(theirs(asked, named, average="samples", zero_division=0))
    classes = [i for i in range(4) if any(group[i] for group in asked)]
    expected = sklearn.f1_score(asked, named, average="macro", labels=classes, zero_division=0)
    assert scores["macro_f1"] == pytest.approx(expected)
    assert scores["exact"] == pytest.approx(sklearn.accuracy_score(asked, named))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("31", 31),
        ("about 42.5 years", 42.5),
        ("The speaker is thirty-one years old.", 31),
        ("one hundred and five", 105),
        ("a hundred", 100),
        ("two hundred twelve", 212),
        ("Nineteen", 19),
        ("zero", 0),
        ("1,200", 1200),
        ("minus: -3", -3),
        ("25, yes 25", 25),
        ("a 31-year-old", 31),
        ("20-30", None),
        ("between twenty and thirty", None),
        ("in her 20s", None),
        ("in his thirties", None),
        ("old", None),
        ("", None),
    ],
)
def test_numbers_are_read_from_digits_and_words(text, number):
    assert parse_number(text) == number


@settings(deadline=None)  # imports and a busy machine are no failure
@given(st.text(max_size=40))
def test_no_answer_crashes_the_parser(text):
    assert parse_number(text) is None or isinstance(parse_number(text), float)


def test_unparsed_ages_are_counted_and_charged():
    scores = score_regression(["30", 40, "fifty"], ["33", "forty-one", "no idea"], penalty=20)
    assert scores["mae"] == 2 and scores["mae_with_penalty"] == 8 and scores["unparsed"] == 1
    assert scores["constant_mae"] == pytest.approx(20 / 3)
    silent = score_regression(["30", "40"], ["", ""])
    assert silent["mae"] is None and silent["mae_with_penalty"] == silent["penalty"] == 20
    with pytest.raises(ValueError, match="unknown"):
        score_regression(["unknown"], ["30"])


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    intervals = [ratio_interval(generator.random(80) < 0.3) for _ in range(100)]
    assert 88 <= sum(low <= 0.3 <= high for low, high in intervals) <= 100
    assert ratio_interval([1, 2], [10, 10]) == ratio_interval([1, 2], [10, 10])
    low, high = ratio_interval([0.0, 4.0], [1.0, 1.0])
    assert (low, high) == (0.0, 4.0)
