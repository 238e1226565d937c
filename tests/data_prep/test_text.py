"""Text normalisation: the effect of each step, idempotence, and the dry run."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audiolm_lite.config.errors import ConfigError, UserError
from data_prep.text import STEPS, normaliser, plain_transcript
from data_prep.text.__main__ import main
from data_prep.text.korean import _sino

KSPON = "b/ 아/ 모+ 몬 소리야 (70%)/(칠 십 퍼센트) 확률이라니 n/"


@pytest.mark.parametrize(
    ("steps", "before", "after"),
    [
        ([], "  as  it is ", "  as  it is "),
        (["nfc"], "\u1100\u1161\u11a8 e\u0301", "\uac01 \u00e9"),
        (["lower"], "Ab  C", "ab c"),
        (["sphinx_marks"], "<s> GO ++BREATH++ THE(2) [noise] </s>", "GO THE"),
        (["brackets"], "a (b [c] d) e <unk> （f） g) {h", "a e g) {h"),
        (["brackets"], "((a) b) c", "c"),
        (["punctuation"], "Don't — stop, 3.5% of 1,000; “a-b” R&D!", "Don't stop 3.5% of 1,000 a b R&D"),
        (["punctuation"], "네, 그래요? 「응」…", "네 그래요 응"),
        (["whisper_basic"], "Hello, [noise] Wörld (x)!", "hello wörld"),
        (["whisper_basic"], "네, 그래요?", "네 그래요"),
        (["whisper_english"], "Mr. X's colour won't cost twenty dollars", "mister x is color will not cost $20"),
        (["korean_noises", "korean_spoken", "korean_marks"], KSPON, "아 모 몬 소리야 칠 십 퍼센트 확률이라니"),
        (["korean_marks", "korean_written", "korean_noises"], KSPON, "아 모 몬 소리야 70% 확률이라니"),
        (["korean_spoken"], "(3시)/(세 시)에 (A/S)/(에이 에스)", "세 시에 에이 에스"),
        (["korean_spoken"], "(70%)/칠십 그대로", "(70%)/칠십 그대로"),
        (["korean_marks"], "그*/ 어+, a+b 3/4 3/4분", "그 어, a+b 3/4 3/4분"),
        (["korean_marks", "korean_noises"], "가/b/ 나+n/", "가 나"),
        (["korean_noises"], "o/ 네n/ 두b/l/", "네n/ 두b/"),
        (["korean_symbols"], "$5, ¥1,000, 70%", "5달러, 1,000엔, 70퍼센트"),
        (["korean_symbols"], "70% 3℃ 5㎞ $1,000.5 ₩ 300 R&D", "70퍼센트 3도 5킬로미터 1,000.5달러 300원 R앤드D"),
        (["korean_numbers"], "0 10 21 105 1,234 10000 2024년", "영 십 이십일 백오 천이백삼십사 만 이천이십사년"),
        (["korean_numbers"], "3시에 14시 20명 21살이 3개월 3시즌", "세 시에 십사시 스무 명 스물한 살이 삼개월 삼시즌"),
        (["korean_numbers"], "-3도 3.14 007", "마이너스 삼도 삼점일사 공공칠"),
        (["korean_numbers"], "010-1234-5678로 1,2", "공일공 일이삼사 오육칠팔로 일,이"),
        (["korean_numbers"], "1" * 21, "일" * 21),
    ],
)  # fmt: skip
def test_steps(steps, before, after):
    assert normaliser(steps)(before) == after


@pytest.mark.parametrize(
    ("raw", "plain"), [("<s> GO </s> ", "go"), ("A ++BREATH++ B [noise]", "a b"), ("</s>", ""), ("IT'S", "it's")]
)
def test_plain_transcript(raw, plain):
    assert plain_transcript(raw) == plain


PIECES = ["가", "나 ", "b/", "n/ ", "(a)/(b)", "3", "1,000", "3시", "<s>", *"/+*()-.$%'[] x"]


@pytest.mark.parametrize("name", sorted(STEPS.keys() - {"whisper_english"}))
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
@example(text="((a)/(b))/(c)")
@example(text="$$5 ((x)) 1.2.3")
@example(text="$  $0")
def test_steps_are_idempotent(name, text):
    normalise = normaliser([name])
    once = normalise(text)
    assert normalise(once) == once == " ".join(once.split())


@given(st.integers(0, 10**20 - 1))
@example(10000)
@example(100010001)
def test_sino_numbers_are_parsed_back(value):
    """An independent parser recovers every number from its words."""
    digits = {word: number for number, word in enumerate("영일이삼사오육칠팔구")}
    small, large = {"십": 10, "백": 100, "천": 1000}, {"만": 10**4, "억": 10**8, "조": 10**12, "경": 10**16}
    total = group = digit = 0
    for word in _sino(value):
        if word in digits:
            digit = digits[word]
        elif word in small:
            group, digit = group + (digit or 1) * small[word], 0
        else:
            total, group, digit = total + (group + digit or 1) * large[word], 0, 0
    assert total + group + digit == value


@given(st.text(alphabet="0123456789,.-시개명 원가", max_size=30))
def test_no_digits_remain(text):
    assert not any(character.isdigit() for character in normaliser(["korean_numbers"])(text))


def test_an_unknown_step_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match="unknown step 'korean_spokn'; did you mean 'korean_spoken'"):
        normaliser(["nfc", "korean_spokn"])


def test_dry_run(tmp_path: Path, capsys):
    rows = [{"task": "asr", "target": KSPON}, {"task": "asr", "target": "네"}, {"task": "gender", "target": "n/"}]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8-sig")
    main(["korean_noises", "korean_spoken", "--file", str(manifest)])
    expected = f"line 1\n  - {KSPON}\n  + 아/ 모+ 몬 소리야 칠 십 퍼센트 확률이라니\n"
    assert capsys.readouterr().out == expected + "1 of 2 transcripts change; 0 are empty afterwards\n"
    text = tmp_path / "t.txt"
    text.write_text("A\nb/\n\nC\n", encoding="utf-8")
    main(["korean_noises", "lower", "--file", str(text), "--show", "1"])
    out = capsys.readouterr().out
    assert out == "line 1\n  - A\n  + a\n3 of 3 transcripts change, 1 are shown; 1 are empty afterwards\n"
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"t.txt, after line 0: .*give UTF-8"):
        main(["lower", "--file", str(text)])


def test_help_lists_every_step(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in STEPS)
