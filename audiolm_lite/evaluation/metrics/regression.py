"""Mean absolute error of numbers given in words, such as a speaker's age."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from audiolm_lite.evaluation.metrics.family import Column, ItemError, MetricFamily, check_lengths
from audiolm_lite.evaluation.metrics.intervals import ratio_interval
from audiolm_lite.evaluation.metrics.normalisers import base_language

# A number in digits. A minus sign counts only without a letter or digit before it: "20-30" contains 20 and 30. Neither
# "20s", "2nd" nor a number that a multiplier follows ("3万") is one.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])-?\d+(?:\.\d+)?(?!\d|[.]\d|(?:s|st|nd|rd|th)\b|[십백천만억조十百千万萬億亿兆]"
    r"|\s(?:hundred|thousand|million|billion)\b)"
)


def parse_number(text: str, language: str = "en") -> float | None:
    """Return the one number that a text names, in digits or English words, otherwise None.

    The result is also None if the text names several different numbers ("between 20 and 30"): choosing one of them
    would favour the model. English number words are read by Whisper's normaliser; words of other languages are not
    read. A decade ("in her 20s", "thirties") and an ordinal are not numbers. A comma separates thousands only.

    Parameters
    ----------
    text : str
    language : str
        Code of the text's language.

    Examples
    --------
    >>> parse_number("The speaker is thirty-one years old."), parse_number("31 ans", "fr")
    (31.0, 31.0)
    >>> print(parse_number("between 20 and 30"), parse_number("trente et un ans", "fr"))
    None None
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2212", "-")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    if base_language(language) == "en":
        text = _words_to_digits(text)
    numbers = {float(match[0]) for match in _NUMBER.finditer(text)}
    return numbers.pop() if len(numbers) == 1 else None


@cache
def _whisper_numbers() -> Callable[[str], str]:
    from whisper.normalizers.english import EnglishNumberNormalizer

    return EnglishNumberNormalizer()


def _words_to_digits(text: str) -> str:
    """Replace English number words by digits."""
    words = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    words = re.sub(r"(?<=[a-z])[.,;:!?)]+(?=\s|$)", " ; ", words)  # the normaliser reads words without punctuation
    words = re.sub(r"\boh?\b", " ", words)  # an interjection, which the normaliser reads as 0
    words = re.sub(r"\b(\d+)\s+(?=\d)", r"\1 ; ", words)  # "20 30" are two numbers
    try:
        words = _whisper_numbers()(words)
    except (ValueError, TypeError, IndexError, ArithmeticError):
        return text
    return re.sub(r"\bone\b", "1", words)


def score_regression(
    targets: Sequence[str | float],
    answers: Sequence[str],
    penalty: float = 20.0,
    languages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score numbers parsed from free text.

    Parameters
    ----------
    targets : sequence of str or float
        The correct number of each item.
    answers : sequence of str
        The model's answers, read by `parse_number`.
    penalty : float
        Error of an unparsed answer in `mae_with_penalty`, in the unit of the targets (years for age).
    languages : sequence of str, optional
        Code of each item's language; English if None.

    Returns
    -------
    dict
        `mae` over the parsed answers (None if there are none), `mae_with_penalty` over all answers, `penalty`, `items`,
        `unparsed`, `constant_mae` (of always answering the median target), `interval` of the two errors, `per_item`
        [{number, error}], None where no number was read.

    Raises
    ------
    ValueError
        No items, differing lengths, or a target that does not name one number.

    Examples
    --------
    >>> scores = score_regression(["30", "40"], ["about thirty-three", "no idea"], penalty=20)
    >>> scores["mae"], scores["mae_with_penalty"], scores["unparsed"]
    (3.0, 11.5, 1)
    """
    check_lengths("score_regression", targets, answers)
    codes = languages or ["en"] * len(targets)
    truth = [parse_number(str(target), code) for target, code in zip(targets, codes)]
    if None in truth:
        item = truth.index(None)
        raise ItemError("score_regression", item, f"target {targets[item]!r} does not name one number")
    correct = np.array(truth, dtype=np.float64)
    parsed = [parse_number(answer, code) for answer, code in zip(answers, codes)]
    errors = np.array([penalty if p is None else abs(p - t) for p, t in zip(parsed, correct)])
    known = np.array([p is not None for p in parsed])
    interval = {"mae_with_penalty": ratio_interval(errors)}
    if known.any():
        interval["mae"] = ratio_interval(errors[known])
    return {
        "mae": float(errors[known].mean()) if known.any() else None,
        "mae_with_penalty": float(errors.mean()),
        "penalty": penalty,
        "items": len(targets),
        "unparsed": int((~known).sum()),
        "constant_mae": float(np.abs(correct - np.median(correct)).mean()),
        "interval": interval,
        "per_item": [
            {"number": p, "error": None if p is None else abs(p - t)} for p, t in zip(parsed, correct.tolist())
        ],
    }


def score_rows(
    rows: Sequence[dict], answers: Sequence[str], field: str = "target", penalty: float = 20.0
) -> dict[str, Any]:
    """Score answers to rows whose field `field` is the correct number.

    Examples
    --------
    >>> scores = score_rows([{"age": "30"}, {"age": 50}], ["about thirty-two", "unknown"], field="age")
    >>> scores["mae"], scores["unparsed"]
    (2.0, 1)
    """
    languages = [row.get("language") or "en" for row in rows]
    return score_regression([row[field] for row in rows], answers, penalty, languages)


FAMILY = MetricFamily(
    score_rows,
    columns=(
        Column("mae", "MAE", False, "↓"),
        Column("mae_with_penalty", "MAE, unparsed answers penalised", False, "↓"),
    ),
)
