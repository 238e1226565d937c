"""Accuracy and F1 of free-text answers that are mapped to labels by a fixed rule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audiolm_lite.evaluation.metrics.choices import named_choice, offered_choices
from audiolm_lite.evaluation.metrics.family import Column, ItemError, MetricFamily, check_lengths
from audiolm_lite.evaluation.metrics.intervals import bootstrap, proportion_interval
from audiolm_lite.evaluation.metrics.label_units import stems, units

# Either the labels themselves, or the wordings of each label: {"male": ["male", "a man"]}.
Labels = Sequence[str] | Mapping[str, Sequence[str]]

COLUMNS = (Column("accuracy", "accuracy", True, "↑"), Column("macro_f1", "macro F1", True, "↑"))


def match_label(answer: str, labels: Labels, question: str = "") -> str | None:
    """Map a free-text answer to the one label that it names.

    The rule: (1) an answer that equals a wording of a label after `normalise` is mapped to that label. (2) Otherwise,
    each wording whose units (see `label_units`: words, or characters where a script does not separate words) occur in
    the answer is a mention of its label, unless it is inside a longer mention of another label ("siren" in "police
    siren"). Particles that Korean, Arabic and Hebrew attach to a word do not hide a label. The answer is mapped to the
    label if all mentions are of one label. (3) If the question offers choices under letters or numbers, an answer that
    names one ("B", "(B)", "Answer: B.") names the label of its text, or the letter if that is the label. (4) Otherwise,
    with no label or several labels named, the result is None. Negations are not understood.

    Parameters
    ----------
    answer : str
        The model's answer.
    labels : sequence or mapping
        See `Labels`.
    question : str
        The question, which may offer choices.

    Returns
    -------
    str or None

    Examples
    --------
    >>> labels = {"male": ["male", "a man"], "female": ["female", "a woman"]}
    >>> match_label("This is a man speaking.", labels)
    'male'
    >>> print(match_label("A man or a woman.", labels))
    None
    >>> match_label("Answer: B.", labels, question="Who speaks? A. a man B. a woman")
    'female'
    """
    choices = offered_choices(question)
    if all(len(label) == 1 and label.isascii() and label.isalpha() for label in labels):  # the labels are the letters
        own = {label.upper(): label for label in labels}
        texts = _named_by_text(answer, list(choices.values()))
        by_text = {own[letter] for letter in choices.keys() & own.keys() if choices[letter] in texts}
        named = {own[letter] for letter in named_choice(answer, own)} or by_text or _named_by_text(answer, labels)
    else:
        of_letters = (_named_by_text(choices[letter], labels) for letter in named_choice(answer, choices))
        named = _named_by_text(answer, labels).union(*of_letters)
    return next(iter(named)) if len(named) == 1 else None


def _named_by_text(answer: str, labels: Labels) -> set[str]:
    exact = {label for label in labels if answer.strip() == label}  # also labels of symbols alone, such as "+"
    words, wordings = units(answer), wordings_of(labels)
    return exact or wordings.get(tuple(words)) or labels_named(words, wordings)


def wordings_of(labels: Labels) -> dict[tuple[str, ...], set[str]]:
    """Map the words of each wording to the labels that it names.

    Examples
    --------
    >>> wordings_of({"male": ["a man"]})
    {('a', 'man'): {'male'}}
    """
    by_label = labels if isinstance(labels, Mapping) else {label: [label] for label in labels}
    wordings: dict[tuple[str, ...], set[str]] = {}
    for label, group in by_label.items():
        for wording in group:
            if words := tuple(units(wording)):
                wordings.setdefault(words, set()).add(label)
    return wordings


def labels_named(words: Sequence[str], wordings: Mapping[tuple[str, ...], set[str]]) -> set[str]:
    """Labels with a wording that occurs among these words, unless it occurs only inside a longer wording.

    Examples
    --------
    >>> sorted(labels_named("a police siren".split(), wordings_of(["siren", "police siren"])))
    ['police siren']
    """
    longest = max(map(len, wordings), default=0)
    mentions = [
        (label, start, end)
        for start in range(len(words))
        for end in range(start + 1, min(start + longest, len(words)) + 1)
        for label in {label for stem in stems(tuple(words[start:end])) for label in wordings.get(stem, ())}
    ]
    return {
        label
        for label, start, end in mentions
        if not any(s <= start and end <= e and e - s > end - start for _, s, e in mentions)
    }


def score_classification(
    targets: Sequence[str],
    answers: Sequence[str],
    labels: Labels | Sequence[Labels] | None = None,
    questions: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score free-text answers to closed-ended questions.

    Parameters
    ----------
    targets : sequence of str
        The correct label of each item.
    answers : sequence of str
        The model's answers, mapped to labels by `match_label`. An answer that names no label, or several, is wrong and
        counted in `unparsed`.
    labels : optional
        The labels that an answer may name (see `Labels`): one collection for all items, or one per item. By default
        those that occur in `targets`.
    questions : sequence of str, optional
        The questions, which may offer choices.

    Returns
    -------
    dict
        `accuracy`, `macro_f1` (mean over the classes that occur in `targets`), `items`, `unparsed`,
        `majority_accuracy` (of always answering the most frequent target), `per_class` {label: precision, recall, f1,
        items}, `interval` {"accuracy": [low, high], "macro_f1": [low, high]}, `per_item` [{label, correct}].

    Raises
    ------
    ValueError
        No items, differing lengths, or a target that is not a label.

    Examples
    --------
    >>> scores = score_classification(["dog", "rain"], ["I hear a dog.", "a dog or rain"])
    >>> scores["accuracy"], scores["unparsed"]
    (0.5, 1)
    """
    check_lengths("score_classification", targets, answers)
    if labels is None:
        labels = sorted(set(targets))
    same_for_all = isinstance(labels, Mapping) or isinstance(labels[0], str)
    groups: list[Any] = [labels] * len(targets) if same_for_all else list(labels)
    for item, (target, group) in enumerate(zip(targets, groups, strict=True)):
        if target not in group:
            problem = f"target {target!r} is not among its labels {list(group)[:20]}"
            raise ItemError("score_classification", item, problem)
    asked = questions or [""] * len(targets)
    named = [match_label(answer, group, question) for answer, group, question in zip(answers, groups, asked)]
    return score_labels(named, targets)


def score_labels(predicted: Sequence[str | None], targets: Sequence[str]) -> dict[str, Any]:
    """Score predicted labels, None for an answer that names none; returns the scores of `score_classification`.

    Examples
    --------
    >>> scores = score_labels(["dog", None], ["dog", "rain"])
    >>> scores["accuracy"], scores["unparsed"], scores["per_class"]["rain"]["recall"]
    (0.5, 1, 0.0)
    """
    predictions, truth = np.array(predicted, dtype=object), np.array(targets, dtype=object)
    classes = sorted(set(targets))
    is_target = np.stack([truth == name for name in classes], axis=1).astype(np.float64)  # [items, classes]
    is_predicted = np.stack([predictions == name for name in classes], axis=1).astype(np.float64)
    class_scores = score_classes(classes, is_target, is_predicted)
    correct = (predictions == truth).astype(np.float64)
    return {
        "accuracy": float(correct.mean()),
        "macro_f1": class_scores["macro_f1"],
        "items": len(targets),
        "unparsed": sum(label is None for label in predicted),
        "majority_accuracy": float(is_target.sum(0).max() / len(targets)),
        "per_class": class_scores["per_class"],
        "interval": {"accuracy": proportion_interval(correct), "macro_f1": class_scores["interval"]},
        "per_item": [{"label": label, "correct": label == target} for label, target in zip(predicted, targets)],
    }


def score_classes(classes: Sequence[str], is_target: np.ndarray, is_predicted: np.ndarray) -> dict[str, Any]:
    """Score each class.

    Parameters
    ----------
    classes : sequence of str
        Names of the classes, each the target of one item at least.
    is_target, is_predicted : ndarray
        [items, classes] of 0 and 1, float64.

    Returns
    -------
    dict
        `per_class` {label: precision, recall, f1, items}, `macro_f1` (mean over the classes) and its `interval`, where
        a resample has the mean over the classes that are targets in it.

    Examples
    --------
    >>> is_target, is_predicted = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [1, 0]])
    >>> scores = score_classes(["dog", "rain"], is_target, is_predicted)
    >>> scores["per_class"]["dog"]["precision"], round(scores["macro_f1"], 3)
    (0.5, 0.333)
    """
    both, either = is_target * is_predicted, is_target + is_predicted

    def macro_f1(counts: np.ndarray) -> np.ndarray:
        """Mean F1 [R] over the classes that are targets, for item counts [R, items]."""
        total, present = counts @ either, counts @ is_target > 0
        f1 = np.divide(2 * (counts @ both), total, out=np.zeros_like(total), where=total > 0)
        classes_present = present.sum(1)
        mean = np.divide(
            (f1 * present).sum(1), classes_present, where=classes_present > 0, out=np.full(len(f1), np.nan)
        )
        return mean

    hits, targets, predicted = (matrix.sum(0) for matrix in (both, is_target, is_predicted))
    f1_per_class = 2 * hits / (targets + predicted)
    return {
        "per_class": {
            name: {
                "precision": float(hits[i] / predicted[i]) if predicted[i] else 0.0,
                "recall": float(hits[i] / targets[i]),
                "f1": float(f1_per_class[i]),
                "items": int(targets[i]),
            }
            for i, name in enumerate(classes)
        },
        "macro_f1": float(f1_per_class.mean()),
        "interval": bootstrap(macro_f1, len(is_target)),
    }


def score_rows(
    rows: Sequence[dict], answers: Sequence[str], labels: Labels | Sequence[Labels] | None = None
) -> dict[str, Any]:
    """Score answers to rows with the field `label` or else `target`; `labels` defaults to the rows' field `labels`.

    Examples
    --------
    >>> rows = [{"target": "dog", "labels": ["dog", "rain"]}, {"target": "rain", "labels": ["rain", "wind"]}]
    >>> scores = score_rows(rows, ["A dog barks.", "strong wind"])
    >>> scores["accuracy"], scores["unparsed"]
    (0.5, 0)
    """
    if labels is None and all("labels" in row for row in rows):
        labels = [row["labels"] for row in rows]
    questions = [row.get("instruction") or "" for row in rows]
    return score_classification([row.get("label", row["target"]) for row in rows], answers, labels, questions)


FAMILY = MetricFamily(score_rows, columns=COLUMNS)
