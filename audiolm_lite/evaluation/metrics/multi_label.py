"""Precision, recall and F1 of free-text answers that name several labels, such as all sounds of a clip.

Mean average precision, the usual score of FSD50K and AudioSet, needs a score for every class, but a text answer only
names some classes. The measures here are those of label sets (Zhang and Zhou 2014, doi 10.1109/TKDE.2013.39).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from audiolm_lite.evaluation.metrics.classification import Labels, labels_named, score_classes, wordings_of
from audiolm_lite.evaluation.metrics.family import Column, ItemError, MetricFamily, check_lengths
from audiolm_lite.evaluation.metrics.intervals import proportion_interval, rate_interval
from audiolm_lite.evaluation.metrics.label_units import units


def score_multi_label(
    targets: Sequence[Sequence[str]], answers: Sequence[str], labels: Labels | None = None
) -> dict[str, Any]:
    """Score answers that name all labels of an item.

    Parameters
    ----------
    targets : sequence of sequence of str
        The correct labels of each item, at least one.
    answers : sequence of str
        The model's answers. An answer names every label with a wording whose words occur in it, unless only inside a
        longer wording ("speech" in "male speech") or across a semicolon, which separates labels. An answer that names
        none is counted in `unparsed`, and all labels of its item as missed. Negations are not understood.
    labels : optional
        The labels that an answer may name (see `Labels`); by default those that occur in `targets`.

    Returns
    -------
    dict
        `precision`, `recall`, `f1`: means over items of correct / named labels, correct / target labels, and
        2 correct / (named + target). `micro_f1`: the same over all labels of all items together. `macro_f1`: mean F1 of
        the classes that occur in `targets`. `exact` (fraction of items with exactly the target labels), `items`,
        `unparsed`, `per_class` {label: precision, recall, f1, items}, `interval` of f1, micro_f1, macro_f1 and
        exact, `per_item` [{labels, f1}].

    Raises
    ------
    ValueError
        No items, differing lengths, an item without labels, or a target that is not a label.

    Examples
    --------
    >>> scores = score_multi_label([["dog", "rain"], ["car"]], ["a dog", "a car"])
    >>> scores["precision"], scores["recall"], scores["exact"]
    (1.0, 0.75, 0.5)
    """
    check_lengths("score_multi_label", targets, answers)
    classes = sorted({label for group in targets for label in group})
    labels = classes if labels is None else labels
    if unknown := [label for label in classes if label not in labels]:
        raise ValueError(f"score_multi_label: target {unknown[0]!r} is not among the labels {list(labels)[:20]}")
    if not all(targets):
        raise ItemError("score_multi_label", list(map(bool, targets)).index(False), "it has no label")
    wordings = wordings_of(labels)
    named: list[set[str]] = [
        set().union(*(labels_named(units(phrase), wordings) for phrase in answer.split(";"))) for answer in answers
    ]
    target = [set(group) for group in targets]
    correct, sizes, target_sizes = (
        np.array([len(group) for group in groups], np.float64)
        for groups in ([a & b for a, b in zip(target, named)], named, target)
    )
    f1 = 2 * correct / (sizes + target_sizes)
    is_target, is_named = (
        np.array([[name in group for name in classes] for group in groups], np.float64) for groups in (target, named)
    )
    class_scores = score_classes(classes, is_target, is_named)
    return {
        "precision": float((correct / np.maximum(sizes, 1)).mean()),
        "recall": float((correct / target_sizes).mean()),
        "f1": float(f1.mean()),
        "micro_f1": float(2 * correct.sum() / (sizes + target_sizes).sum()),
        "macro_f1": class_scores["macro_f1"],
        "exact": float((f1 == 1).mean()),
        "items": len(targets),
        "unparsed": int((sizes == 0).sum()),
        "per_class": class_scores["per_class"],
        "interval": {
            "f1": rate_interval(f1),
            "micro_f1": rate_interval(2 * correct, sizes + target_sizes),
            "macro_f1": class_scores["interval"],
            "exact": proportion_interval(f1 == 1),
        },
        "per_item": [{"labels": sorted(group), "f1": float(value)} for group, value in zip(named, f1)],
    }


def score_rows(
    rows: Sequence[dict], answers: Sequence[str], field: str = "sounds", labels: Labels | None = None
) -> dict[str, Any]:
    """Score answers to rows whose field `field` is the list of correct labels.

    Examples
    --------
    >>> scores = score_rows([{"sounds": ["dog", "rain"]}], ["a dog"])
    >>> scores["precision"], scores["recall"]
    (1.0, 0.5)
    """
    return score_multi_label([row[field] for row in rows], answers, labels)


FAMILY = MetricFamily(
    score_rows,
    columns=(
        Column("f1", "F1 per item", True, "↑"),
        Column("micro_f1", "micro F1", True, "↑"),
        Column("macro_f1", "macro F1", True, "↑"),
    ),
)
