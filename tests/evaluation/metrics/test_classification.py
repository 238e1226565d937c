"""Mapping of answers to labels, and accuracy and F1 against manual counts and scikit-learn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.evaluation.metrics.classification import match_label, score_classification, score_rows

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


@pytest.mark.parametrize(
    ("answer", "labels", "label"),
    [
        ("有一只狗在叫", ["狗", "雨"], "狗"),
        ("救护车警笛", ["警笛", "救护车警笛"], "救护车警笛"),
        ("猫和狗", ["猫", "狗"], None),
        ("犬の鳴き声です", ["犬", "雨"], "犬"),
        ("ドアの音", ["ドア", "ドアノブ"], "ドア"),
        ("ドアノブの音", ["ドア", "犬"], None),  # inside another word
        ("หมาเห่าอยู่", ["หมา", "ฝน"], "หมา"),
        ("개가 짖고 있다.", ["개", "비"], "개"),
        ("여성의 목소리입니다", ["남성", "여성"], "여성"),
        ("개나리", ["개", "비"], None),
        ("개인", ["개", "비"], None),
        ("यह एक कुत्ता है।", ["कुत्ता", "बारिश"], "कुत्ता"),
        ("कुत्", ["कुत्ता", "बारिश"], None),
        ("هذا صوت الكلب", ["كلب", "مطر"], "كلب"),
        ("صَوْتُ كَلْب", ["كلب", "مطر"], "كلب"),
        ("זה הכלב", ["כלב", "גשם"], "כלב"),
        ("Это собака.", ["собака", "дождь"], "собака"),
        ("İstanbul'da", ["istanbul", "ankara"], "istanbul"),
        ("A cafe\u0301", ["café", "bar"], "café"),  # decomposed
        ("+", ["+", "-"], "+"),
    ],
)
def test_labels_are_found_as_units_of_their_script(answer, labels, label):
    assert match_label(answer, labels) == label


QUESTIONS = (
    "Which sound? (A) dog (B) rain (C) police siren",
    "Which sound?\nA. dog\nB. rain\nC. police siren\nAnswer with the letter.",
    "a) dog, b) rain, c) police siren",
    "Choose. [A] dog [B] rain [C] police siren",
)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("B", "rain"),
        ("b.", "rain"),
        ("(B)", "rain"),
        ("**B**", "rain"),
        ("Answer: B.", "rain"),
        ("The answer is C", "police siren"),
        ("B. rain", "rain"),
        ("B) It is raining", "rain"),
        ("I think it is C.", "police siren"),
        ("答案是B", "rain"),
        ("A dog barks", "dog"),
        ("A sound", None),
        ("B: dog", None),  # contradicts itself
        ("A or B", None),
        ("D", None),
        ("none of them", None),
    ],
)
def test_letters_of_offered_choices_are_read(question, answer, label):
    assert match_label(answer, ["dog", "rain", "police siren"], question) == label


def test_letters_count_where_the_question_offers_choices():
    assert match_label("B", ["dog", "rain"], "Is it a dog or rain?") is None
    assert match_label("2", ["dog", "rain"], "Which? 1. dog 2. rain") == "rain"
    letters = ["A", "B"], "Which? A. dog B. rain"
    answers = ["B", "It is rain.", "A dog barks, so (A).", "A and B", "(B) a rain shower"]
    assert [match_label(answer, *letters) for answer in answers] == ["B", "B", "A", None, "B"]
    rows = [{"instruction": QUESTIONS[0], "target": "rain", "labels": ["dog", "rain", "police siren"]}] * 2
    scores = score_rows(rows, ["(B)", "E"])
    assert scores["accuracy"] == 0.5 and scores["unparsed"] == 1
    assert scores["per_item"] == [{"label": "rain", "correct": True}, {"label": None, "correct": False}]


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
