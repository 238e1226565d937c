"""Units of a text in which labels are found: words, or characters where a script does not separate words."""

import re
import unicodedata
from collections.abc import Iterator

from audiolm_lite.evaluation.metrics.normalisers import is_unspaced

# Vowel signs that Arabic and Hebrew writing may leave out, and the tatweel.
_OPTIONAL_MARKS = re.compile(
    "[\u0610-\u061a\u064b-\u065f\u0670\u0640\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
# Particles and forms of "to be" that Korean attaches to a noun.
# Those of one syllable that also end other nouns are not among them: 개인 is no form of 개.
_PARTICLES = re.compile(
    r"(?:들)?(?:은|는|이|가|을|를|의|에|에서|에게|께|와|과|도|만|로|으로|랑|이랑|하고|처럼|보다|부터|까지|이나|이며|"
    r"입니다|이다|이에요|예요|에요|이야|이었다|였다|이었습니다|였습니다|이고|이네요|네요|들)"
)
# Article, conjunctions and prepositions that Arabic and Hebrew attach to a noun.
_PREFIXES = {"ARABIC": re.compile("[وف]?(?:[بكل]?ال|لل|[بكل])|[وف]"), "HEBREW": re.compile("ו?(?:[הבלמשכ]|מה|שה)|ו")}


def normalise(text: str) -> str:
    """Lower-case a text, unify compatible forms, and replace all but letters, their marks and digits by single spaces.

    Examples
    --------
    >>> normalise("Dog_bark!"), normalise("कुत्ता।")
    ('dog bark', 'कुत्ता')
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("i\u0307", "i")
    text = _OPTIONAL_MARKS.sub("", unicodedata.normalize("NFC", text))
    kept: list[str] = []
    for character in text:
        kind = unicodedata.category(character)
        if kind[0] == "M":
            kept += [character] if kept and kept[-1] != " " else []
        elif kind != "Cf":
            kept.append(character if character.isalnum() else " ")
    return " ".join("".join(kept).split())


def units(text: str) -> list[str]:
    """Split a text into words; where a script has no spaces, into characters with their marks, or runs of katakana.

    Examples
    --------
    >>> units("A police siren!"), units("犬とドア")
    (['a', 'police', 'siren'], ['犬', 'と', 'ドア'])
    """
    found: list[str] = []
    before = ""
    for word in normalise(text).split():
        for character in word:
            kind = _kind(character)
            mark = unicodedata.category(character)[0] == "M"
            if before and (mark or (kind == before and kind != "character")):
                found[-1] += character
                continue
            found.append(character)
            before = kind
        before = ""
    return found


def _kind(character: str) -> str:
    if "\u30a1" <= character <= "\u30ff":
        return "katakana"
    return "character" if is_unspaced(character) else "word"


def stems(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield these words, and what is left of them without a particle after the last or before the first one.

    Examples
    --------
    >>> list(stems(("개가",))), list(stems(("a", "dog")))
    ([('개가',), ('개',)], [('a', 'dog')])
    """
    yield words
    last, first = words[-1], words[0]
    if "가" <= last[0] <= "힣":
        for cut in range(1, len(last)):
            if _PARTICLES.fullmatch(last[cut:]):
                yield (*words[:-1], last[:cut])
    script = unicodedata.name(first[0], "").split(" ")[0]
    if script in _PREFIXES:
        for cut in range(1, len(first) - 1):
            if _PREFIXES[script].fullmatch(first[:cut]):
                yield (first[cut:], *words[1:])
