"""Choices that a question offers under letters or numbers, and answers that name one: "B", "(B)", "Answer: B."."""

import re
import unicodedata
from collections.abc import Mapping

_MARKER = re.compile(r"(?:(?<=^)|(?<=[\s,;:?!.(\[]))[(\[]?([A-Za-z]|\d{1,2})\s?(?:[)\].](?=\s|[^\W\d_])|:\s)\s*")
_ALONE = re.compile(r"[\W_]*([A-Za-z]|\d{1,2})[\W_]*")
_BEFORE_TEXT = re.compile(r"[(\[*\s]*([A-Za-z]|\d{1,2})[)\]*]*\s?(?:[).:\]]|\s-)")
_NAMED = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+is)?\s*:?\s*[(\[*\"']*([A-Z]|\d{1,2})\b(?!['’\w])", re.IGNORECASE
)
_BRACKETED = re.compile(r"[(\[]([A-Za-z]|\d{1,2})[)\]]")
_CAPITAL = re.compile(r"(?<![A-Za-z0-9'’])([A-HJ-Z])(?![A-Za-z0-9'’])(?! [a-z])")


def offered_choices(question: str) -> dict[str, str]:
    """Return the choices of a question by their letters, in capitals, or numbers; empty if it offers none.

    Examples
    --------
    >>> offered_choices("Which sound? (A) dog (B) police siren")
    {'A': 'dog', 'B': 'police siren'}
    >>> offered_choices("Is this a dog?")
    {}
    """
    text = unicodedata.normalize("NFKC", question)
    markers = list(_MARKER.finditer(text))
    for first in range(len(markers)):
        chosen = [markers[first]]
        for marker in markers[first + 1 :]:
            if _follows(chosen[-1][1], marker[1]):
                chosen.append(marker)
        if chosen[0][1] in ("A", "a", "1") and len(chosen) > 1:
            ends = [marker.start() for marker in chosen[1:]] + [len(text)]
            return {
                marker[1].upper(): text[marker.end() : end].strip().split("\n")[0].strip(" \t\n,;.([")
                for marker, end in zip(chosen, ends)
            }
    return {}


def _follows(before: str, name: str) -> bool:
    if before.isdigit() or name.isdigit():
        return before.isdigit() and name.isdigit() and int(name) == int(before) + 1
    return ord(name) == ord(before) + 1


def named_choice(answer: str, choices: Mapping[str, str]) -> set[str]:
    """Return the letters or numbers of choices that an answer names.

    Examples
    --------
    >>> choices = {"A": "dog", "B": "rain"}
    >>> [sorted(named_choice(text, choices)) for text in ("b", "Answer: B.", "(A) dog", "A or B", "A dog barks")]
    [['B'], ['B'], ['A'], ['A', 'B'], []]
    """
    text = unicodedata.normalize("NFKC", answer).strip()
    named = {match[1] for match in (_ALONE.fullmatch(text), _BEFORE_TEXT.match(text)) if match}
    for pattern in (_NAMED, _BRACKETED):
        named |= {match[1] for match in pattern.finditer(text)}
    named |= {match[1] for match in _CAPITAL.finditer(text)}
    named |= {match[1] for match in re.finditer(r"(?<![A-Za-z0-9'’])([A-Z]) (?:or|and|nor) (?=[A-Z]\b)", text)}
    return {letter.upper() for letter in named} & choices.keys()
