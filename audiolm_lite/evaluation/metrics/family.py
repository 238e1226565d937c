"""What every metric family provides: a scoring function, the scores that reports show, and values of its options."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A score as reports show it.

    Attributes
    ----------
    name : str
        Key of the score in `metrics.json`.
    title : str
        Name in tables.
    percent : bool
        The score is a fraction and is shown in percent.
    better : str
        "↓" if lower is better, "↑" if higher is better.
    """

    name: str
    title: str
    percent: bool
    better: str


class MetricFamily(NamedTuple):
    """The metrics of one kind of task; a `metrics` entry in YAML names it by `type`.

    Attributes
    ----------
    score_rows : callable
        (rows, answers, **options) -> dict of scores: manifest rows, one answer (str) per row, and the options that the
        `metrics` entry may have. The scores contain `items` or another count of what was scored, `interval`, a
        confidence interval for each score that has one, and `per_item`, a dict of scores for each answer. What cannot
        be parsed or computed is counted or reported as missing, never scored as 0 silently.
    columns : sequence of Column
        The scores that reports show, in order.
    choices : mapping
        Option -> the values that it, or each entry of it if it is a list, may have.
    """

    score_rows: Callable[..., dict[str, Any]]
    columns: Sequence[Column]
    choices: Mapping[str, Sequence[str]] = {}


def check_lengths(function: str, targets: Sequence, answers: Sequence) -> None:
    """Raise ValueError, naming the function, unless there is one answer per target and at least one target.

    Examples
    --------
    >>> check_lengths("score_asr", ["yes", "no"], ["yes"])
    Traceback (most recent call last):
    ValueError: score_asr: 2 targets and 1 answers; give one answer per target, at least one
    """
    if len(targets) != len(answers) or not targets:
        raise ValueError(
            f"{function}: {len(targets)} targets and {len(answers)} answers; give one answer per target, at least one"
        )


class ItemError(ValueError):
    """An item that cannot be scored; `score_task` reports it by the id of its row.

    Parameters
    ----------
    function : str
        Name of the scoring function.
    item : int
        Number of the item.
    problem : str
        What is wrong with it.

    Examples
    --------
    >>> print(ItemError("score_slots", 3, "target 'latte' has no pair"))
    score_slots: item 3: target 'latte' has no pair
    """

    def __init__(self, function: str, item: int, problem: str):
        super().__init__(f"{function}: item {item}: {problem}")
        self.item, self.problem = item, problem
