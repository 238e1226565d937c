"""Text normalisation of transcripts as named steps, which YAML files and the command line put in a row.

Each step takes a text and returns it with single spaces. `python -m data_prep.text --help` lists them.
"""

import difflib
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

from audiolm_lite.config.errors import ConfigError
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
# Punctuation that is said, or that holds a word or a number together: don't, 3.5, 1,000, 10:30.
_SAID = "%‰&@#*/+"
_HOLDS = re.compile(r"(?<=[^\W\d_])['’](?=[^\W\d_])|(?<=\d)[.,:](?=\d)")


def nfc(text: str) -> str:
    """Compose characters (Unicode form NFC), so that one syllable or accented letter is written in one way."""
    return unicodedata.normalize("NFC", text)


def lower(text: str) -> str:
    """Lower-case."""
    return text.lower()


def sphinx_marks(text: str) -> str:
    """Drop the marks of Sphinx transcripts: <s>, <sil>, ++BREATH++, [noise], and the (2) of THE(2)."""
    return _SPHINX_MARKS.sub(" ", text)


def brackets(text: str) -> str:
    """Drop round, square, angle and curly brackets with what they hold, from the inside out; a lone one stays."""
    while (shorter := _BRACKETED.sub(" ", text)) != text:
        text = shorter
    return text


def punctuation(text: str) -> str:
    """Drop punctuation, but not an apostrophe in a word, a point, comma or colon in a number, or % & @ # * / +."""
    kept = {match.start() for match in _HOLDS.finditer(text)}
    return "".join(
        " " if unicodedata.category(c)[0] == "P" and c not in _SAID and i not in kept else c for i, c in enumerate(text)
    )


def whisper_basic(text: str) -> str:
    """Whisper's normaliser of any language: lower case, no brackets, symbols and marks become spaces."""
    return _whisper("BasicTextNormalizer")(text)


def whisper_english(text: str) -> str:
    """Whisper's normaliser of English: also contractions, spelling and numbers, as its published WERs use it."""
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
    """Put steps in a row.

    Parameters
    ----------
    steps : sequence of str
        Names in STEPS, in the order of their use; none leaves every text as it is.

    Returns
    -------
    callable
        Text -> text.

    Raises
    ------
    ConfigError
        An unknown step; names the nearest known one.
    """
    for name in steps:
        if name not in STEPS:
            close = difflib.get_close_matches(str(name), STEPS, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"text: unknown step {name!r}; {meant}Known: {', '.join(STEPS)}")

    def normalise(text: str) -> str:
        for name in steps:
            text = " ".join(STEPS[name](text).split())
        return text

    return normalise


# Capitals carry nothing in corpora that are written in them throughout, and language models know lower case best.
plain_transcript = normaliser(["sphinx_marks", "lower"])
