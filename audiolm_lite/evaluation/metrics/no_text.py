"""Clips without speech whose transcript was asked for: how often the answer has no text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from audiolm_lite.evaluation.metrics.family import Column, MetricFamily, check_lengths
from audiolm_lite.evaluation.metrics.intervals import proportion_interval
from audiolm_lite.evaluation.metrics.normalisers import NORMALISERS, make_normaliser


def score_rows(rows: Sequence[dict], answers: Sequence[str], normaliser: str = "auto") -> dict[str, Any]:
    """Score answers to rows of clips without speech, whatever their targets.

    Parameters
    ----------
    rows : sequence of dict
        Manifest rows; only their number counts.
    answers : sequence of str
        The model's transcripts.
    normaliser : str
        See `normalisers.make_normaliser`. Those of Whisper drop texts in brackets, so "[no speech]" counts as no text.

    Returns
    -------
    dict
        `no_text` (share of the answers without a word after the normaliser), `words` (mean per answer), `items`,
        `normaliser`, `interval` {"no_text": [low, high]}, `per_item` [{words}].

    Raises
    ------
    ValueError
        Differing numbers of rows and answers, or none.

    Examples
    --------
    >>> scores = score_rows([{}, {}, {}, {}], ["", "[no speech]", "thank you", "."])
    >>> scores["no_text"], scores["words"]
    (0.75, 0.5)
    """
    check_lengths("no_text", rows, answers)
    normalise = make_normaliser(normaliser)
    # The normalisers leave some points.
    words = np.array([sum(map(_is_word, normalise(answer).split())) for answer in answers])
    return {
        "no_text": float((words == 0).mean()),
        "words": float(words.mean()),
        "items": len(answers),
        "normaliser": normaliser,
        "interval": {"no_text": proportion_interval(words == 0)},
        "per_item": [{"words": int(count)} for count in words],
    }


def _is_word(token: str) -> bool:
    return any(character.isalnum() for character in token)


FAMILY = MetricFamily(
    score_rows, columns=(Column("no_text", "no text", True, "↑"),), choices={"normaliser": NORMALISERS}
)
