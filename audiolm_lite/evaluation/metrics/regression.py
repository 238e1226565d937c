"""Mean absolute error of numbers given in words, such as a speaker's age."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from audiolm_lite.evaluation.metrics.family import Column, MetricFamily, check_lengths
from audiolm_lite.evaluation.metrics.intervals import ratio_interval

_UNITS = dict(zero=0, one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, eleven=11)
_UNITS |= dict(twelve=12, thirteen=13, fourteen=14, fifteen=15, sixteen=16, seventeen=17, eighteen=18, nineteen=19)
_TENS = dict(twenty=20, thirty=30, forty=40, fifty=50, sixty=60, seventy=70, eighty=80, ninety=90)
# A minus sign counts only without a letter or digit before it: "20-30" contains 20 and 30. "20s" is not a number.
_TOKEN = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\d|s\b)|[a-z]+")


def parse_number(text: str) -> float | None:
    """Return the one number that a text names, in digits or English words, otherwise None.

    The result is also None if the text names several different numbers ("between 20 and 30"): choosing one of them
    would favour the model. Number words up to 999 are read. A decade ("in her 20s", "thirties") is not a number.

    Examples
    --------
    >>> parse_number("The speaker is thirty-one years old.")
    31.0
    >>> print(parse_number("between 20 and 30"))
    None
    """
    tokens = _TOKEN.findall(text.lower().replace(",", ""))
    numbers: set[float] = set()
    index = 0
    while index < len(tokens):
        token = tokens[index]
        if token[-1].isdigit():
            numbers.add(float(token))
            index += 1
            continue
        value, used = _words_to_number(tokens[index:])
        if used:
            numbers.add(float(value))
        index += max(used, 1)
    return numbers.pop() if len(numbers) == 1 else None


def _words_to_number(tokens: list[str]) -> tuple[int, int]:
    """Value of the number words (0 to 999) at the start of `tokens`, and how many tokens they take (0: none)."""
    if tokens[0] == "hundred" or (tokens[0] in ("a", *_UNITS) and tokens[1:2] == ["hundred"]):
        used = 1 if tokens[0] == "hundred" else 2
        hundreds = _UNITS.get(tokens[0], 1) * 100
        tail = tokens[used + 1 :] if tokens[used : used + 1] == ["and"] else tokens[used:]
        if tail and (tail[0] in _TENS or tail[0] in _UNITS):
            rest, rest_used = _words_to_number(tail)
            return hundreds + rest, len(tokens) - len(tail) + rest_used
        return hundreds, used
    if tokens[0] in _TENS:
        unit = _UNITS.get(tokens[1], 0) if len(tokens) > 1 else 0
        return (_TENS[tokens[0]] + unit, 2) if 0 < unit < 10 else (_TENS[tokens[0]], 1)
    return (_UNITS[tokens[0]], 1) if tokens[0] in _UNITS else (0, 0)


def score_regression(targets: Sequence[str | float], answers: Sequence[str], penalty: float = 20.0) -> dict[str, Any]:
    """Score numbers parsed from free text.

    Parameters
    ----------
    targets : sequence of str or float
        The correct number of each item.
    answers : sequence of str
        The model's answers, read by `parse_number`.
    penalty : float
        Error of an unparsed answer in `mae_with_penalty`, in the unit of the targets (years for age).

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
    truth = [parse_number(str(target)) for target in targets]
    if None in truth:
        raise ValueError(f"score_regression: target {targets[truth.index(None)]!r} does not name one number")
    correct = np.array(truth, dtype=np.float64)
    parsed = [parse_number(answer) for answer in answers]
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
    return score_regression([row[field] for row in rows], answers, penalty)


FAMILY = MetricFamily(
    score_rows,
    columns=(
        Column("mae", "MAE", False, "↓"),
        Column("mae_with_penalty", "MAE, unparsed answers penalised", False, "↓"),
    ),
)
