"""Parsing of numbers in text, and errors against a manually counted case."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_lite.evaluation.metrics.regression import parse_number, score_regression, score_rows


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
        ("two thousand", 2000),
        ("two and a half", 2.5),
        ("oh, thirty.", 30),
        ("a thirty-year-old man", 30),
        ("the 2nd", None),
        ("1,5", None),
        ("３１歳", 31),
        ("年齢は31歳です", 31),
        ("3万", None),
        ("٣١", 31),
        ("old", None),
        ("", None),
    ],
)
def test_numbers_are_parsed_from_digits_and_words(text, number):
    assert parse_number(text) == number


def test_words_of_other_languages_are_not_read():
    texts = ["trente", "ten minste", "einunddreißig", "三十一", "31 Jahre"]
    assert [parse_number(text, "nl") for text in texts] == [None, None, None, None, 31]
    rows = [{"target": "31", "language": "nl"}, {"target": "31", "language": "en"}]
    assert score_rows(rows, ["ten", "thirty-one"])["unparsed"] == 1


@settings(deadline=None)  # imports and a busy machine take longer
@given(st.text(max_size=40))
def test_parser_accepts_any_text(text):
    assert parse_number(text) is None or isinstance(parse_number(text), float)


def test_unparsed_ages_are_counted_and_penalised():
    scores = score_regression(["30", 40, "fifty"], ["33", "forty-one", "no idea"], penalty=20)
    assert scores["mae"] == 2 and scores["mae_with_penalty"] == 8 and scores["unparsed"] == 1
    assert scores["constant_mae"] == pytest.approx(20 / 3)
    unparsed = score_regression(["30", "40"], ["", ""])
    assert unparsed["mae"] is None and unparsed["mae_with_penalty"] == unparsed["penalty"] == 20
    with pytest.raises(ValueError, match="unknown"):
        score_regression(["unknown"], ["30"])
