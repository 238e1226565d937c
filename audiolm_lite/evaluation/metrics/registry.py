"""The metric families by the `type` that names them, scoring of a task, and the check of `metrics` entries."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from audiolm_lite.config.errors import ConfigError, did_you_mean, errors_about
from audiolm_lite.evaluation.metrics import (
    asr,
    captioning,
    classification,
    matched_caption,
    multi_label,
    no_text,
    regression,
    slots,
)
from audiolm_lite.evaluation.metrics.family import ItemError, MetricFamily

FAMILIES: dict[str, MetricFamily] = {
    "asr": asr.FAMILY,
    "classification": classification.FAMILY,
    "multi_label": multi_label.FAMILY,
    "regression": regression.FAMILY,
    "captioning": captioning.FAMILY,
    "matched_caption": matched_caption.FAMILY,
    "slots": slots.FAMILY,
    "no_text": no_text.FAMILY,
}


def score_task(rows: Sequence[dict], answers: Sequence[str], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Score the answers to the rows of one task.

    Parameters
    ----------
    rows : sequence of dict
        Manifest rows.
    answers : sequence of str
        One per row.
    entry : mapping
        The task's entry of `metrics`: `type` and the options of that metric family, checked by `check_metrics`.

    Returns
    -------
    dict
        Scores of the family, and its `type`.

    Raises
    ------
    ConfigError
        Rows without the fields that the family needs, or an option's value that it cannot have.

    Examples
    --------
    >>> rows = [{"target": "31"}, {"target": "40"}]
    >>> scores = score_task(rows, ["about thirty", "forty"], {"type": "regression"})
    >>> scores["type"], scores["mae"]
    ('regression', 0.5)
    """
    options = {name: value for name, value in entry.items() if name != "type"}
    with errors_about(f"metrics, task {rows[0].get('task')!r}, type {entry['type']}"):
        try:
            return {"type": entry["type"], **FAMILIES[entry["type"]].score_rows(rows, answers, **options)}
        except ItemError as error:
            raise ConfigError(
                f'metrics, task {rows[0].get("task")!r}, row "{rows[error.item].get("id")}": {error.problem}'
            ) from error


def check_metrics(metrics: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> None:
    """Check the entries of `metrics` before any answer is generated.

    Parameters
    ----------
    metrics : mapping
        Task -> entry, as in `score_task`.
    tasks : sequence of str
        The tasks of the test set.

    Raises
    ------
    ConfigError
        A task without entry, an unknown type or option, or a value that the option cannot have.

    Examples
    --------
    >>> check_metrics({"asr": {"type": "asr", "normalizer": "basic"}}, tasks=["asr"])
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: metrics, task 'asr', type asr: unknown option 'normalizer'; did you mean ...
    """
    for task in tasks:
        where = f"metrics, task {task!r}"
        if task not in metrics:
            raise ConfigError(f"{where}: the test set has this task, and no entry scores it; add one")
        if not isinstance(metrics[task], Mapping):
            raise ConfigError(f"{where}: {metrics[task]!r} is not a mapping; write {{type: asr}} or another type")
        options = dict(metrics[task])
        kind = options.pop("type", None)
        if kind not in FAMILIES:
            raise ConfigError(f"{where}: unknown type {kind!r}{did_you_mean(kind, FAMILIES)}")
        family = FAMILIES[kind]
        parameters = dict(list(inspect.signature(family.score_rows).parameters.items())[2:])
        for option, value in options.items():
            if option not in parameters:
                raise ConfigError(f"{where}, type {kind}: unknown option {option!r}{did_you_mean(option, parameters)}")
            choices = family.choices.get(option, ())
            entries = [value] if isinstance(parameters[option].default, str) else value
            if unknown := [entry for entry in entries if entry not in choices] if choices else []:
                raise ConfigError(f"{where}: unknown {option} {unknown[0]!r}{did_you_mean(unknown[0], choices)}")
