"""Word and character error rates against cases counted manually."""

import pytest

from audiolm_lite.evaluation.metrics.asr import score_asr


def test_wer_counts_each_kind_of_error():
    scores = score_asr(["a b c d", "e f"], ["a x c", "e f g"], normaliser="none")
    assert scores["wer"] == 3 / 6
    assert (scores["substitutions"], scores["deletions"], scores["insertions"], scores["words"]) == (1, 1, 1, 6)
    assert scores["cer"] == pytest.approx((1 + 2 + 2) / 10)  # b -> x, " d" deleted, " g" inserted; 7 + 3 characters


def test_empty_answer_counts_as_deletions_and_empty_target_only_adds_insertions():
    scores = score_asr(["a b", ""], ["", "c"], normaliser="none")
    assert (scores["deletions"], scores["insertions"], scores["wer"]) == (2, 1, 1.5)


def test_normalisers_follow_their_definitions():
    reference, hypothesis = ["Mr. O'Neil can't pay $20!"], ["mister o'neil cannot pay 20 dollars"]
    assert score_asr(reference, hypothesis, "none")["wer"] > 0.5
    english = score_asr(["Mr. Brown can't pay twenty dollars!"], ["mister brown can not pay $20"], "whisper_english")
    assert english["wer"] == 0
    assert score_asr(["Привет, мир!"], ["привет мир"], "basic")["wer"] == 0
    with pytest.raises(ValueError, match="whisper_english"):
        score_asr(["a"], ["a"], "english")


def test_input_that_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="2 targets and 1 answers"):
        score_asr(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no target contains a word"):
        score_asr(["...", ""], ["a", "b"], "basic")
