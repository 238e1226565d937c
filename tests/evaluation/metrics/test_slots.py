"""Scores of lists of slots and of transcripts of clips without speech, against manual counts."""

import pytest

from audiolm_lite.evaluation.metrics import no_text
from audiolm_lite.evaluation.metrics.slots import parse_slots, score_slots


def test_scores_of_a_manually_counted_case():
    targets = ["drink: latte; size: small", "drink: iced mocha; milk: a bit of soy milk", "drink: latte", "size: large"]
    answers = [
        "Size: small; drink: Latte.",
        "drink: iced mocha; milk: soy milk",
        "a latte please",
        "size: large; roast: dark",
    ]
    scores = score_slots(targets, answers)
    # correct / named / target slots per item: 2 / 2 / 2, 1 / 2 / 2, 0 / 0 / 1, 1 / 2 / 1
    assert scores["exact"] == 1 / 4
    assert scores["precision"] == 4 / 6
    assert scores["recall"] == 4 / 6
    assert scores["f1"] == pytest.approx(4 / 6)
    assert (scores["items"], scores["unparsed"]) == (4, 1)
    assert scores["per_slot"]["drink"] == {"recall": 2 / 3, "items": 3}
    assert "roast" not in scores["per_slot"]  # in no target
    assert scores["interval"]["exact"][0] <= scores["exact"] <= scores["interval"]["exact"][1]


def test_a_wrong_slot_under_a_right_name_counts_twice():
    """It is missing in the recall and superfluous in the precision."""
    scores = score_slots(["size: small; drink: latte"], ["size: large; drink: latte"])
    assert (scores["exact"], scores["precision"], scores["recall"]) == (0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("size: small\nsize: large", {"size": "large"}),
        ("drink latte; : small; size:", {}),
        ("time: 10:30", {"time": "10 30"}),
        ("", {}),
    ],
)
def test_entries_without_name_or_value_are_ignored(text, slots):
    assert parse_slots(text) == slots


@pytest.mark.parametrize(
    ("targets", "answers", "message"),
    [
        (["latte"], ["drink: latte"], "target 'latte' has no"),
        ([], [], "0 targets and 0 answers"),
        (["size: small"], [], "1 targets and 0 answers"),
    ],
)
def test_slots_that_cannot_be_scored_are_refused(targets, answers, message):
    with pytest.raises(ValueError, match=message):
        score_slots(targets, answers)


def test_no_text_depends_on_the_normaliser():
    """Only a normaliser that drops texts in brackets accepts "[no speech]"; a word for silence is text under any."""
    answers = ["[no speech]", "", "...", "silence"]
    assert no_text.score_rows([{}] * 4, answers)["no_text"] == 0.75
    assert no_text.score_rows([{}] * 4, answers, normaliser="none")["no_text"] == 0.5
    with pytest.raises(ValueError, match="2 targets and 1 answers"):
        no_text.score_rows([{}, {}], [""])
