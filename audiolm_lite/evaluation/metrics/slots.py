"""Answers that are lists of slots, such as "drink: latte; size: small": exact match and F1 of the slots."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from audiolm_lite.evaluation.metrics.family import Column, ItemError, MetricFamily, check_lengths
from audiolm_lite.evaluation.metrics.intervals import proportion_interval, rate_interval
from audiolm_lite.evaluation.metrics.label_units import normalise


def parse_slots(text: str) -> dict[str, str]:
    """Return name -> value of a text with "name: value" entries, separated by semicolons or line ends.

    Names and values are in lower case without punctuation. An entry without a colon, a name or a value is ignored. Of
    several entries with one name the last counts.

    Examples
    --------
    >>> parse_slots("Drink: iced mocha; size: Large.")
    {'drink': 'iced mocha', 'size': 'large'}
    """
    slots = {}
    for entry in text.replace("\n", ";").split(";"):
        name, _, value = (normalise(part) for part in entry.partition(":"))
        if name and value:
            slots[name] = value
    return slots


def score_slots(targets: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    """Score lists of slots; their order does not matter.

    Parameters
    ----------
    targets : sequence of str
        The correct slots of each item, see `parse_slots`.
    answers : sequence of str
        The model's answers.

    Returns
    -------
    dict
        `exact` (share of the items with all slots right and no other), `f1`, `precision` and `recall` over all slots of
        all items (a slot is right if name and value are), `per_slot` {name: {recall, items}}, `items`, `unparsed`
        (answers without any slot), `interval` {"exact": [low, high], "f1": [low, high]}, `per_item` [{slots, exact}].

    Raises
    ------
    ValueError
        Differing numbers of targets and answers, or a target without slots.

    Examples
    --------
    >>> targets = ["drink: latte; size: small", "drink: mocha"]
    >>> scores = score_slots(targets, ["size: small; drink: latte", "drink: mocha; size: large"])
    >>> scores["exact"], scores["precision"], scores["recall"]
    (0.5, 0.75, 1.0)
    """
    check_lengths("score_slots", targets, answers)
    truth = [parse_slots(target) for target in targets]
    if {} in truth:
        item = truth.index({})
        raise ItemError("score_slots", item, f'target {targets[item]!r} has no "name: value"')
    named = [parse_slots(answer) for answer in answers]
    correct, sizes, target_sizes = (
        np.array([len(group) for group in groups], np.float64)
        for groups in ([a.items() & b.items() for a, b in zip(truth, named)], named, truth)
    )
    exact = np.array([a == b for a, b in zip(truth, named)], np.float64)
    per_slot = {}
    for name in sorted({name for slots in truth for name in slots}):
        hits = [found.get(name) == slots[name] for slots, found in zip(truth, named) if name in slots]
        per_slot[name] = {"recall": sum(hits) / len(hits), "items": len(hits)}
    return {
        "exact": float(exact.mean()),
        "f1": float(2 * correct.sum() / (sizes + target_sizes).sum()),
        "precision": float(correct.sum() / max(1.0, sizes.sum())),
        "recall": float(correct.sum() / target_sizes.sum()),
        "per_slot": per_slot,
        "items": len(targets),
        "unparsed": int((sizes == 0).sum()),
        "interval": {"exact": proportion_interval(exact), "f1": rate_interval(2 * correct, sizes + target_sizes)},
        "per_item": [{"slots": slots, "exact": bool(right)} for slots, right in zip(named, exact)],
    }


def score_rows(rows: Sequence[dict], answers: Sequence[str]) -> dict[str, Any]:
    """Score answers to rows whose field `target` has the slots.

    Examples
    --------
    >>> score_rows([{"target": "size: small"}], ["size: large"])["exact"]
    0.0
    """
    return score_slots([row["target"] for row in rows], answers)


FAMILY = MetricFamily(
    score_rows, columns=(Column("exact", "exact match", True, "↑"), Column("f1", "slot F1", True, "↑"))
)
