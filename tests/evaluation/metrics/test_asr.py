"""Word and character error rates against cases counted manually."""

import pytest

from audiolm_lite.evaluation.metrics.asr import score_asr, score_rows


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
    with pytest.raises(ValueError, match="2 targets and 1 languages"):
        score_asr(["a", "b"], ["a", "b"], languages=["en"])


def test_references_without_words_have_insertions_and_no_rate():
    scores = score_asr(["...", ""], ["a b", "c"], "basic")
    assert scores["insertions"] == 3 and scores["words"] == 0 and scores["interval"] == {}
    assert "no reference has any text" in scores["wer"]["missing"] and "missing" in scores["cer"]


@pytest.mark.parametrize(
    ("language", "reference", "answer", "wer", "cer"),
    [
        ("hi", "मैं घर जाता हूँ।", "मैं घर जाती हूँ", 1 / 4, 1 / 15),  # a wrong vowel sign
        ("ta", "தமிழ் மொழி", "தமிழ் மொழு", 1 / 2, 1 / 10),
        ("vi", "má ăn cơm", "mà ăn cơm", 1 / 3, 1 / 9),  # a wrong tone
        ("vi", "tiếng Việt", "tiếng Việt", 0, 0),  # the answer is decomposed
        ("ar", "كَتَبَ الولد", "كُتِبَ الولد", 1 / 2, 2 / 12),
        ("he", "שָׁלוֹם לך", "שָׁלום לך", 1 / 2, 1 / 10),
        ("fr", "l'été à Paris", "l’ete à Paris!", 1 / 4, 2 / 13),
        ("es", "año nuevo", "ano nuevo", 1 / 2, 1 / 9),
        ("ko", "한국 사람", "한국 사람", 0, 0),  # jamo in the answer
        ("ko", "한국 사람", "한국 사랑", 1 / 2, 1 / 5),
        ("tr", "IŞIK", "ışık", 0, 0),
        ("de", "one hundred can't", "100 cannot", 1, None),  # no rules for English
        ("fa", "می‌خواهم", "میخواهم", 0, 0),
    ],
)
def test_each_language_keeps_its_letters(language, reference, answer, wer, cer):
    scores = score_asr([reference], [answer], languages=language)
    assert scores["wer"] == pytest.approx(wer)
    assert cer is None or scores["cer"] == pytest.approx(cer)


@pytest.mark.parametrize(
    ("language", "reference", "answer", "cer"),
    [
        ("th", "น้ำใจ", "น้าใจ", 1 / 5),
        ("zh-CN", "你好,世界。", "你好 世 界", 0),
        ("ja", "東京タワー", "東京タワ", 1 / 5),
        ("lo", "ສະບາຍດີ", "ສະບາຍດິ", 1 / 7),
        ("km", "សួស្តី", "សួស្ដី", 1 / 6),
        ("my", "မြန်မာ", "မြန်မ", 1 / 6),
        ("en", "你好", "你们", 1 / 2),  # a row without its language
    ],
)
def test_scripts_without_word_spaces_have_characters_only(language, reference, answer, cer):
    scores = score_asr([reference], [answer], languages=language)
    assert "without spaces" in scores["wer"]["missing"] and scores["words"] == 0
    assert scores["cer"] == pytest.approx(cer) and set(scores["interval"]) == {"cer"}


def test_mixed_sets_report_each_language():
    rows = [
        {"target": "It's twenty dollars.", "language": "en"},
        {"target": "Grüße, Welt", "language": "de"},
        {"target": "你好世界", "language": "zh"},
    ]
    scores = score_rows(rows, ["it is $20", "grusse Welt", "你好世"])
    assert "zh" in scores["wer"]["missing"] and list(scores["per_language"]) == ["de", "en", "zh"]
    of = scores["per_language"]
    assert of["en"]["wer"] == 0 and of["en"]["normaliser"] == "whisper_english"
    assert of["de"]["wer"] == 0.5 and of["de"]["normaliser"] == "basic" and of["zh"]["cer"] == 0.25
    scores = score_rows(rows[:2], ["it is $20", "grusse Welt"])
    assert scores["wer"] == 1 / 5 and "per_language" not in score_rows(rows[:1], ["it is $20"])


def test_both_rules_of_the_open_asr_leaderboard():
    targets = ["the white paper", "uhh, the B.B.C. is John's", "um"]
    answers = ["the whitepaper", "the bbc is john s", "x"]
    today = score_asr(targets, answers, "open_asr")
    assert today["wer"] == 0 and today["words"] == 8 and today["excluded"] == 1
    before = score_asr(targets, answers, "open_asr_2025")
    assert before["wer"] == pytest.approx((2 + 1 + 3 + 1) / 11) and before["excluded"] == 1
    assert score_asr(targets, answers, "whisper_english")["insertions"] == before["insertions"] + 1
