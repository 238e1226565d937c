"""Accuracy and F1 of free-text answers mapped to labels by a fixed rule."""

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from audiolm_lite.evaluation.metrics.intervals import bootstrap, ratio_interval

# Either the labels themselves, or each label's wordings: {"male": ["male", "a man"]}.
Labels = Sequence[str] | Mapping[str, Sequence[str]]


def normalise(text: str) -> str:
    """Lower case, compatibility forms unified, every run of characters other than letters and digits one space."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in text).split())


def match_label(answer: str, labels: Labels) -> str | None:
    """Map a free-text answer to the one label it names.

    The rule: (1) an answer that equals a label's wording after `normalise` is that label; (2) otherwise every wording
    that occurs in the answer as whole words is a mention, a mention inside a longer mention of another label does not
    count ("siren" in "police siren"), and the answer is the label when all mentions are of one label; (3) otherwise,
    with no label or several named, the answer is None. Negations are not understood.

    Parameters
    ----------
    answer : str
        What the model said.
    labels : sequence or mapping
        See `Labels`.

    Returns
    -------
    str or None
    """
    words, wordings = normalise(answer).split(), wordings_of(labels)
    named = wordings.get(tuple(words)) or labels_named(words, wordings)
    return next(iter(named)) if len(named) == 1 else None


def wordings_of(labels: Labels) -> dict[tuple[str, ...], set[str]]:
    """Words of each wording -> the labels that it names."""
    named_by = labels if isinstance(labels, Mapping) else {label: [label] for label in labels}
    found: dict[tuple[str, ...], set[str]] = {}
    for label, group in named_by.items():
        for wording in group:
            if words := tuple(normalise(wording).split()):
                found.setdefault(words, set()).add(label)
    return found


def labels_named(words: Sequence[str], wordings: Mapping[tuple[str, ...], set[str]]) -> set[str]:
    """Labels of which a wording occurs among these words, other than inside a longer one that does."""
    longest = max(map(len, wordings), default=0)
    mentions = [
        (label, start, end)
        for start in range(len(words))
        for end in range(start + 1, min(start + longest, len(words)) + 1)
        for label in wordings.get(tuple(words[start:end]), ())
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
) -> dict:
    """Score free-text answers to closed questions.

    Parameters
    ----------
    targets : sequence of str
        The right label of each item.
    answers : sequence of str
        The model's words; mapped to labels by `match_label`. An answer that names no label, or several, is wrong and
        counted in `unparsed`.
    labels : optional
        The labels an answer may name (see `Labels`), one collection for all items or one each; by default those that
        occur in `targets`.

    Returns
    -------
    dict
        `accuracy`, `macro_f1` (mean over the classes that occur in `targets`), `items`, `unparsed`,
        `majority_accuracy` (always answering the most frequent target), `per_class` {label: precision, recall, f1,
        items}, `interval` {"accuracy": [low, high], "macro_f1": [low, high]}.

    Raises
    ------
    ValueError
        No items, differing lengths, a target that is not a label.
    """
    if len(targets) != len(answers) or not targets:
        raise ValueError(f"score_classification: {len(targets)} targets and {len(answers)} answers")
    if labels is None:
        labels = sorted(set(targets))
    if isinstance(labels, Mapping) or isinstance(labels[0], str):
        labels = [labels] * len(targets)
    for target, group in zip(targets, labels, strict=True):
        if target not in group:
            raise ValueError(f"score_classification: target {target!r} is not among its labels {list(group)[:20]}")
    return score_labels([match_label(answer, group) for answer, group in zip(answers, labels)], targets)


def score_labels(predicted: Sequence[str | None], targets: Sequence[str]) -> dict:
    """Scores of predicted labels, None where an answer named none; the dictionary of `score_classification`."""
    predicted = np.array(predicted, dtype=object)
    targets = np.array(targets, dtype=object)
    classes = sorted(set(targets))
    is_target = np.stack([targets == name for name in classes], axis=1).astype(np.float64)  # [items, classes]
    is_predicted = np.stack([predicted == name for name in classes], axis=1).astype(np.float64)
    of_classes = score_classes(classes, is_target, is_predicted)
    right = (predicted == targets).astype(np.float64)
    return {
        "accuracy": float(right.mean()),
        "macro_f1": of_classes["macro_f1"],
        "items": len(targets),
        "unparsed": int(sum(label is None for label in predicted)),
        "majority_accuracy": float(is_target.sum(0).max() / len(targets)),
        "per_class": of_classes["per_class"],
        "interval": {"accuracy": ratio_interval(right), "macro_f1": of_classes["interval"]},
    }


def score_classes(classes: Sequence[str], is_target: np.ndarray, is_predicted: np.ndarray) -> dict:
    """Scores of each class from what was asked for and what was answered, both [items, classes] of 0 and 1.

    Returns
    -------
    dict
        `per_class` {label: precision, recall, f1, items}, `macro_f1` (mean over the classes) and its `interval`.
    """
    both, either = is_target * is_predicted, is_target + is_predicted

    def f1(counts: np.ndarray) -> np.ndarray:
        """Per-class F1 [R, classes] for item counts [R, items]; 0 where a class is neither asked for nor answered."""
        hits, total = counts @ both, counts @ either
        return np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)

    hits, asked, answered = (m.sum(0) for m in (both, is_target, is_predicted))
    per_class_f1 = f1(np.ones((1, len(is_target))))[0]
    return {
        "per_class": {
            name: {
                "precision": float(hits[i] / answered[i]) if answered[i] else 0.0,
                "recall": float(hits[i] / asked[i]),
                "f1": float(per_class_f1[i]),
                "items": int(asked[i]),
            }
            for i, name in enumerate(classes)
        },
        "macro_f1": float(per_class_f1.mean()),
        "interval": bootstrap(lambda counts: f1(counts).mean(1), len(is_target)),
    }
