"""Precision, recall and F1 of free-text answers that name several labels, such as all sounds of a clip.

Mean average precision, by which FSD50K and AudioSet are usually scored, needs a score of every class; an answer in
words only names some. The measures here are those of label sets (Zhang and Zhou 2014, doi 10.1109/TKDE.2013.39).
"""

from collections.abc import Sequence

import numpy as np

from audiolm_lite.evaluation.metrics.classification import Labels, labels_named, normalise, score_classes, wordings_of
from audiolm_lite.evaluation.metrics.intervals import ratio_interval


def score_multi_label(targets: Sequence[Sequence[str]], answers: Sequence[str], labels: Labels | None = None) -> dict:
    """Score answers that name all labels of an item.

    Parameters
    ----------
    targets : sequence of sequence of str
        The right labels of each item, one at least.
    answers : sequence of str
        The model's words. An answer names every label of which a wording occurs in it as whole words, except inside a
        longer wording ("speech" in "male speech") or across a semicolon, which separates labels. One that names none
        is counted in `unparsed`, and all its labels as missed. Negations are not understood.
    labels : optional
        The labels an answer may name (see `Labels`); by default those that occur in `targets`.

    Returns
    -------
    dict
        `precision`, `recall`, `f1`: means over items of right labels / labels named, right / asked for, and
        2 right / (named + asked for). `micro_f1`: the same over all labels of all items at once. `macro_f1`: mean F1 of
        the classes that occur in `targets`. `exact` (share of items with all labels right and no other), `items`,
        `unparsed`, `per_class` {label: precision, recall, f1, items}, `interval` of f1, micro_f1 and macro_f1.

    Raises
    ------
    ValueError
        No items, differing lengths, an item without labels, a target that is not a label.
    """
    if len(targets) != len(answers) or not targets:
        raise ValueError(f"score_multi_label: {len(targets)} targets and {len(answers)} answers")
    classes = sorted({label for group in targets for label in group})
    labels = classes if labels is None else labels
    if unknown := [label for label in classes if label not in labels]:
        raise ValueError(f"score_multi_label: target {unknown[0]!r} is not among the labels {list(labels)[:20]}")
    if not all(targets):
        raise ValueError(f"score_multi_label: item {list(map(bool, targets)).index(False)} has no label")
    wordings = wordings_of(labels)
    named = [
        set().union(*(labels_named(normalise(part).split(), wordings) for part in answer.split(";")))
        for answer in answers
    ]
    asked = [set(group) for group in targets]
    right, sizes, wanted = (
        np.array([len(group) for group in groups], np.float64)
        for groups in ([a & b for a, b in zip(asked, named)], named, asked)
    )
    f1 = 2 * right / (sizes + wanted)
    is_target, is_named = (
        np.array([[name in group for name in classes] for group in groups], np.float64) for groups in (asked, named)
    )
    of_classes = score_classes(classes, is_target, is_named)
    return {
        "precision": float((right / np.maximum(sizes, 1)).mean()),
        "recall": float((right / wanted).mean()),
        "f1": float(f1.mean()),
        "micro_f1": float(2 * right.sum() / (sizes + wanted).sum()),
        "macro_f1": of_classes["macro_f1"],
        "exact": float((f1 == 1).mean()),
        "items": len(targets),
        "unparsed": int((sizes == 0).sum()),
        "per_class": of_classes["per_class"],
        "interval": {
            "f1": ratio_interval(f1),
            "micro_f1": ratio_interval(2 * right, sizes + wanted),
            "macro_f1": of_classes["interval"],
        },
    }
