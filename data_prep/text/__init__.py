"""Text normalisation of transcripts as named steps, which YAML files and the command line combine.

Each step takes a text and returns it with single spaces. `audiolm-lite text --help` lists them.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

from audiolm_lite.config.errors import ConfigError, did_you_mean
from data_prep.text.korean import (
    korean_marks,
    korean_noises,
    korean_numbers,
    korean_spoken,
    korean_symbols,
    korean_written,
)

# Sphinx transcripts: sentence marks, noises such as ++BREATH++ or [noise], and "THE(2)" for a second pronunciation.
_SPHINX_MARKS = re.compile(r"</?s>|</?sil>|\+\+\w+\+\+|\[\w+\]|(?<=\w)\(\d+\)")
_BRACKETS = {"(": ")", "[": "]", "<": ">", "{": "}", "（": "）", "［": "］", "【": "】", "〈": "〉", "《": "》"}
_BRACKETED = re.compile("|".join(f"{re.escape(a)}[^{re.escape(a + b)}]*{re.escape(b)}" for a, b in _BRACKETS.items()))
# Punctuation that is spoken, or that is part of a word or a number: don't, 3.5, 1,000, 10:30.
_SPOKEN = "%‰&@#*/+"
_INSIDE = re.compile(r"(?<=[^\W\d_])['’](?=[^\W\d_])|(?<=\d)[.,:](?=\d)")


def nfc(text: str) -> str:
    """Compose characters (Unicode form NFC), so that a syllable or accented letter has only one representation.

    Examples
    --------
    >>> len("e\\u0301"), len(nfc("e\\u0301"))
    (2, 1)
    """
    return unicodedata.normalize("NFC", text)


def lower(text: str) -> str:
    """Convert to lower case.

    Examples
    --------
    >>> lower("Good Morning")
    'good morning'
    """
    return text.lower()


def sphinx_marks(text: str) -> str:
    """Drop the marks of Sphinx transcripts: <s>, <sil>, ++BREATH++, [noise], and the (2) of THE(2).

    Examples
    --------
    >>> sphinx_marks("<s> GO ++NOISE++ THE(2) </s>").split()
    ['GO', 'THE']
    """
    return _SPHINX_MARKS.sub(" ", text)


def brackets(text: str) -> str:
    """Drop round, square, angle and curly brackets with their content, also nested ones; unpaired ones are kept.

    Examples
    --------
    >>> brackets("good (very [loud] noise) morning (sic").split()
    ['good', 'morning', '(sic']
    """
    while (shorter := _BRACKETED.sub(" ", text)) != text:
        text = shorter
    return text


def punctuation(text: str) -> str:
    """Drop punctuation, except apostrophes in words, points, commas and colons in numbers, and % & @ # * / +.

    Examples
    --------
    >>> punctuation("Well, don't pay 3.5 % (today)!").split()
    ['Well', "don't", 'pay', '3.5', '%', 'today']
    """
    kept = {match.start() for match in _INSIDE.finditer(text)}
    return "".join(
        " " if unicodedata.category(c)[0] == "P" and c not in _SPOKEN and i not in kept else c
        for i, c in enumerate(text)
    )


def whisper_basic(text: str) -> str:
    """Whisper's normaliser for all languages: lower case, no brackets, spaces in place of symbols and marks."""
    return _whisper("BasicTextNormalizer")(text)


def whisper_english(text: str) -> str:
    """Whisper's normaliser for English, as in its published WERs: also contractions, spelling and numbers."""
    return _whisper("EnglishTextNormalizer")(text)


@cache
def _whisper(name: str) -> Callable[[str], str]:
    import whisper.normalizers  # slow to import

    return getattr(whisper.normalizers, name)()


STEPS: dict[str, Callable[[str], str]] = {
    step.__name__: step
    for step in (
        nfc, lower, sphinx_marks, brackets, punctuation, whisper_basic, whisper_english,
        korean_noises, korean_spoken, korean_written, korean_marks, korean_symbols, korean_numbers,
    )
}  # fmt: skip


def normaliser(steps: Sequence[str]) -> Callable[[str], str]:
    """Combine steps into one function.

    Parameters
    ----------
    steps : sequence of str
        Names in STEPS, in the order of application; without steps, texts do not change.

    Returns
    -------
    callable
        Text -> text.

    Raises
    ------
    ConfigError
        A step is unknown.

    Examples
    --------
    >>> normaliser(["sphinx_marks", "lower"])("<s> GO ++NOISE++ THE(2) </s>")
    'go the'
    """
    for name in steps:
        if name not in STEPS:
            raise ConfigError(f"text: unknown step {name!r}{did_you_mean(name, STEPS)}")

    def normalise(text: str) -> str:
        for name in steps:
            text = " ".join(STEPS[name](text).split())
        return text

    return normalise


# For corpora in capital letters: case has no information there, and language models handle lower case best.
plain_transcript = normaliser(["sphinx_marks", "lower"])
