"""Steps for Korean transcripts, in the notation of KsponSpeech (Bang et al. 2020, doi 10.3390/app10196936) and AI Hub.

    b/ 아/ 모+ 몬 소리야 (70%)/(칠 십 퍼센트) 확률이라니 n/

Written and spoken form are given as (written)/(spoken). A letter and a slash is a noise: b breath, l laughter, n noise,
o another speaker, u unintelligible. A mark ends a word: / filler, + repetition, * unclear speech.
"""

import re

_DUAL = re.compile(r"\(([^()]*)\)\s*/\s*\(([^()]*)\)")
_NOISE = re.compile(r"(?<!\w)[blnou]/")
# After any Korean syllable, but after another word only at its end: a+b and 3/4 have no marks.
_MARK = re.compile(r"(?<=[가-힣])[/+*]+|(?<=\w)(?<!(?<!\w)[blnou])[/+*]+(?=\s|$|[.,?!])")
_MARK_AT_NOISE = re.compile(r"(?<=[가-힣])[/+*]+(?=[blnou]/)")  # keeps a space between word and noise

_DIGITS = "영일이삼사오육칠팔구"
_SMALL = ("", "십", "백", "천")
_LARGE = ("", "만", "억", "조", "경")
_TENS = ("", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔")
_ONES = ("", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉")
# Counters that always take native numbers; 번, 대, 장, 분, 월 do so in one meaning only.
_COUNTERS = "시간|시|개|명|살|마리|잔|권|병|그루|켤레|송이|가지|군데|사람"
# A counter ends here or is followed by a particle: 3개월 and 3시즌 are other words.
_PARTICLES = "에서|에|의|은|는|이|가|을|를|도|만|으로|로|과|와|씩|쯤|정도|까지|부터|나|랑|반|정각|경|인|예|입|짜리"
_NUMBER = re.compile(
    rf"(?P<minus>(?<!\S)-)?(?P<integer>\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?P<decimals>\.\d+)?"
    rf"(?:(?P<gap>\s?)(?P<counter>{_COUNTERS})(?=$|[^가-힣]|(?:{_PARTICLES})))?"
)
_SYMBOLS = {
    "%": "퍼센트", "％": "퍼센트", "℃": "도", "°": "도", "㎏": "킬로그램", "㎞": "킬로미터", "㎝": "센티미터",
    "㎜": "밀리미터", "㎡": "제곱미터", "#": "샵", "&": "앤드", "@": "골뱅이",
}  # fmt: skip
_MONEY = {"$": "달러", "₩": "원", "€": "유로", "¥": "엔"}


def korean_noises(text: str) -> str:
    """Drop the noises b/ l/ n/ o/ u/ of Korean transcripts.

    Examples
    --------
    >>> korean_noises("b/ 아 n/ 소리").split()
    ['아', '소리']
    """
    return _NOISE.sub(" ", text)


def korean_spoken(text: str) -> str:
    """Keep the spoken form of (written)/(spoken): 칠 십 퍼센트 of (70%)/(칠 십 퍼센트).

    Examples
    --------
    >>> korean_spoken("(70%)/(칠 십 퍼센트) 확률")
    '칠 십 퍼센트 확률'
    """
    return _choose(text, 2)


def korean_written(text: str) -> str:
    """Keep the written form of (written)/(spoken): 70% of (70%)/(칠 십 퍼센트).

    Examples
    --------
    >>> korean_written("(70%)/(칠 십 퍼센트) 확률")
    '70% 확률'
    """
    return _choose(text, 1)


def _choose(text: str, form: int) -> str:
    while (chosen := _DUAL.sub(lambda match: match[form], text)) != text:
        text = chosen
    return text


def korean_marks(text: str) -> str:
    """Drop the marks / + * at the end of Korean words (filler, repetition, unclear), and keep the words.

    Examples
    --------
    >>> korean_marks("아/ 모+ 몬 소리야*")
    '아 모 몬 소리야'
    """
    return _MARK.sub("", _MARK_AT_NOISE.sub(" ", text))


def korean_symbols(text: str) -> str:
    """Write % ℃ ㎏ ㎞ ㎝ ㎜ ㎡ # & @ and the money of a number ($5, ₩, €, ¥) as they are read in Korean.

    Examples
    --------
    >>> korean_symbols("$5 70% 20℃")
    '5달러 70퍼센트 20도'
    """
    text = re.sub(
        rf"(?:([{''.join(_MONEY)}])\s*)+(\d+(?:,\d+)*(?:\.\d+)?)", lambda match: match[2] + _MONEY[match[1]], text
    )
    return "".join(_SYMBOLS.get(character, character) for character in text)


def korean_numbers(text: str) -> str:
    """Write digits as they are read in Korean: 70 as 칠십, 3.5 as 삼점오, 3시 as 세 시, 010 as 공일공.

    Numbers are Sino-Korean up to 20 digits; 1 to 99 before a counter that always takes native numbers (시 up to 12,
    시간, 개, 명, 살, 마리, 잔, 권, 병 ...) are native. Numbers with a leading zero, groups joined by hyphens (telephone
    numbers) and longer numbers are read digit by digit. Readings that depend on the meaning of the sentence are not
    handled: 번 (일 번 or 한 번), dates and fractions with slashes, ranges, 10:30.

    Examples
    --------
    >>> korean_numbers("3시에 21명")
    '세 시에 스물한 명'
    """
    text = re.sub(r"(?<![\d-])\d+(?:-\d+)+(?![\d-])", lambda match: _digit_by_digit(match[0].replace("-", " ")), text)
    return _NUMBER.sub(_read, text)


def _read(match: re.Match) -> str:
    integer, counter = match["integer"].replace(",", ""), match["counter"]
    spoken = match["gap"] + counter if counter else ""
    value = int(integer) if len(integer) <= 20 else 0
    native = counter and not match["decimals"] and not match["minus"] and integer[0] != "0"
    if native and value <= (12 if counter == "시" else 99) and value:
        number, spoken = _native(value), f" {counter}"
    elif len(integer) > 20 or (len(integer) > 1 and integer[0] == "0"):
        number = _digit_by_digit(integer)
    else:
        number = _sino(value)
    decimals = "점" + "".join(_DIGITS[int(digit)] for digit in match["decimals"][1:]) if match["decimals"] else ""
    return ("마이너스 " if match["minus"] else "") + number + decimals + spoken


def _sino(value: int) -> str:
    """Sino-Korean number of up to 20 digits, such as 만이천삼백사십오 for 12,345."""
    if value == 0:
        return _DIGITS[0]
    digits = str(value)
    words = ""
    groups = [digits[max(0, end - 4) : end] for end in range(len(digits), 0, -4)]  # lowest four digits first
    for large, group in reversed(list(zip(_LARGE, groups))):
        if int(group):
            # 일 is omitted before 십, 백 and 천, and before 만 at the beginning.
            spoken = "" if large == "만" and int(group) == 1 and not words else _group(group)
            words += spoken + large
    return words


def _group(digits: str) -> str:
    return "".join(
        (_DIGITS[int(digit)] if digit != "1" or power == 0 else "") + _SMALL[power]
        for digit, power in zip(digits, range(len(digits) - 1, -1, -1))
        if digit != "0"
    )


def _native(value: int) -> str:
    """Native number, 1 to 99, in the form used before a counter."""
    return "스무" if value == 20 else _TENS[value // 10] + _ONES[value % 10]


def _digit_by_digit(digits: str) -> str:
    return "".join("공" if digit == "0" else _DIGITS[int(digit)] if digit.isdigit() else digit for digit in digits)
