"""Answers to a test set, with and without hearing it: predictions.jsonl, metrics.json."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from audiolm_lite.config.errors import UserError
from audiolm_lite.data.batching import LengthBucketSampler
from audiolm_lite.decoding.backend import Backend
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.evaluation.metrics.asr import NORMALISERS, score_asr
from audiolm_lite.evaluation.metrics.captioning import METRICS, score_captions
from audiolm_lite.evaluation.metrics.classification import score_classification
from audiolm_lite.evaluation.metrics.matching import score_matched_captions
from audiolm_lite.evaluation.metrics.multi_label import score_multi_label
from audiolm_lite.evaluation.metrics.regression import score_regression

PREDICTIONS, RESULTS, SETTINGS = "predictions.jsonl", "metrics.json", "evaluation.json"


class EvaluationError(UserError, ValueError):
    """An evaluation that cannot be run as asked; the message names what and the remedy."""


def _asr(rows: Sequence[dict], answers: Sequence[str], normaliser: str = "whisper_english") -> dict:
    return score_asr([row["target"] for row in rows], answers, normaliser)


def _classification(rows: Sequence[dict], answers: Sequence[str], labels: Any = None) -> dict:
    if labels is None and all("labels" in row for row in rows):
        labels = [row["labels"] for row in rows]
    return score_classification([row.get("label", row["target"]) for row in rows], answers, labels)


def _multi_label(rows: Sequence[dict], answers: Sequence[str], field: str = "sounds", labels: Any = None) -> dict:
    return score_multi_label([row[field] for row in rows], answers, labels)


def _regression(rows: Sequence[dict], answers: Sequence[str], field: str = "target", penalty: float = 20.0) -> dict:
    return score_regression([row[field] for row in rows], answers, penalty)


def _captioning(rows: Sequence[dict], answers: Sequence[str], scores: Sequence[str] = METRICS) -> dict:
    return score_captions(answers, [row["references"] for row in rows], scores)


def _matched_caption(rows: Sequence[dict], answers: Sequence[str], matcher: Mapping[str, Any]) -> dict:
    return score_matched_captions([row["label"] for row in rows], answers, [row["labels"] for row in rows], matcher)


SCORERS: dict[str, Callable[..., dict]] = {
    "asr": _asr,
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "captioning": _captioning,
    "matched_caption": _matched_caption,
}


def evaluate(
    bundle: ModelBundle,
    datasets: Mapping[str, Dataset],
    metrics: Mapping[str, Mapping[str, Any]],
    folder: str | Path,
    *,
    batch_tokens: int = 4096,
    generation: Mapping[str, Any] | None = None,
    backend: Backend | None = None,
    num_workers: int = 0,
) -> dict:
    """Let a model answer every row of a test set under each control, and score the answers.

    Answers are kept as they come: an interrupted evaluation goes on where it stopped, a finished one is scored again.

    Parameters
    ----------
    bundle : ModelBundle
        The model, on its device.
    datasets : mapping of str to AudioTextDataset
        Control ("normal", "zeros", "shuffled") -> the same rows with that `audio`, all with `with_answer=False`.
    metrics : mapping of str to mapping
        Task -> how it is scored: `type` and its options. "asr" (normaliser); "classification" (labels, by default the
        row's own field `labels`; right is its field `label`, else the target); "multi_label" (field that holds the list
        of right labels, by default `sounds`; labels, by default all that are right somewhere); "regression" (field that
        holds the number, penalty of an unparsed answer); "captioning" (scores, see `captioning.METRICS`);
        "matched_caption" (matcher, see `matching`: a caption is mapped to one of the row's `labels` by a second model).
    folder : path
        Receives `predictions.jsonl` (id, control, task, instruction, prediction, target, references), `metrics.json`
        and `evaluation.json`.
    batch_tokens : int
        Padded prompt tokens in a batch.
    generation : mapping, optional
        Replaces entries of `bundle.generation`.
    backend : Backend, optional
        Of the bundle's LLM; eager if None.
    num_workers : int
        Processes that read features or audio.

    Returns
    -------
    dict
        Contents of `metrics.json`: `controls` {control: {task: scores with their `type`}}, `items`,
        `generation`, `backend`, `model`, `rows`. A task with rows of several datasets has scores for each of them
        beside those of all, as "task, dataset".

    Raises
    ------
    EvaluationError
        A task without a metric, an unknown type or option, or a folder with the answers of another evaluation.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = sorted({row["task"] for dataset in datasets.values() for row in dataset.rows})
    check_metrics(metrics, tasks)
    settings = {
        "model": bundle.identity,
        "generation": {**bundle.generation, **(generation or {})},
        "backend": backend.name if backend else "eager",
        "rows": {control: _digest(dataset.rows) for control, dataset in datasets.items()},
    }
    answers = _earlier_answers(folder, settings)
    for control, dataset in datasets.items():
        todo = [i for i, row in enumerate(dataset.rows) if (control, row["id"]) not in answers]
        with (folder / f".{PREDICTIONS}.partial").open("a", encoding="utf-8") as log:
            for rows, texts in _answers(bundle, dataset, todo, batch_tokens, generation, backend, num_workers, control):
                for row, text in zip(rows, texts):
                    answers[control, row["id"]] = text
                    log.write(json.dumps({"control": control, "id": row["id"], "prediction": text}) + "\n")
                log.flush()

    fields = ("task", "instruction", "target", "references")
    lines = [
        {"id": row["id"], "control": control, "prediction": answers[control, row["id"]], **{f: row[f] for f in fields}}
        for control, dataset in datasets.items()
        for row in dataset.rows
    ]
    _write(folder / PREDICTIONS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (folder / f".{PREDICTIONS}.partial").unlink()
    controls = {
        control: {
            name: score_task(rows, [answers[control, row["id"]] for row in rows], metrics[rows[0]["task"]])
            for name, rows in _groups(dataset.rows, tasks)
        }
        for control, dataset in datasets.items()
    }
    result = {"controls": controls, "items": len(lines), **settings}
    _write(folder / RESULTS, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def _groups(rows: Sequence[dict], tasks: Sequence[str]) -> Iterator[tuple[str, list[dict]]]:
    """Rows of each task, and, as "task, dataset", of each dataset where a task has several."""
    for task in tasks:
        of_task = [row for row in rows if row["task"] == task]
        if of_task:
            yield task, of_task
        names = sorted({row["dataset"] for row in of_task})
        for name in names if len(names) > 1 else ():
            yield f"{task}, {name}", [row for row in of_task if row["dataset"] == name]


def score_task(rows: Sequence[dict], answers: Sequence[str], options: Mapping[str, Any]) -> dict:
    """Scores of the answers to rows of one task; `options` are its entry of `metrics` (see `evaluate`)."""
    options = dict(options)
    kind = options.pop("type")
    return {"type": kind, **SCORERS[kind](rows, answers, **options)}


def _answers(bundle, dataset, todo, batch_tokens, generation, backend, num_workers, control):
    """Yield the rows and answers of each batch of the items `todo`, longest first."""
    if not todo:
        return
    sampler = LengthBucketSampler([dataset.lengths[i] for i in todo], batch_tokens, shuffle=False)
    loader = DataLoader(Subset(dataset, todo), batch_sampler=sampler, collate_fn=list, num_workers=num_workers)
    with tqdm(total=len(todo), desc=f"answers, audio {control}", unit="item") as bar:
        for items in loader:
            rows_at_once = backend.state.batch_size if backend and backend.state else len(items)
            for start in range(0, len(items), rows_at_once):
                part = items[start : start + rows_at_once]
                yield [item.row for item in part], bundle.answer(part, generation, backend)
                bar.update(len(part))


def check_metrics(metrics: Mapping[str, Mapping[str, Any]], tasks: Sequence[str]) -> None:
    """Refuse before hours of generation what scoring would refuse after them: EvaluationError names it."""
    for task in tasks:
        where = f"metrics, task {task!r}"
        if task not in metrics:
            raise EvaluationError(f"{where}: the rows have this task and no entry scores it; add one")
        options = dict(metrics[task])
        kind = options.pop("type", None)
        if kind not in SCORERS:
            raise EvaluationError(f"{where}: type {kind!r} is none of {', '.join(SCORERS)}")
        known = list(inspect.signature(SCORERS[kind]).parameters)[2:]
        if unknown := sorted(set(options) - set(known)):
            raise EvaluationError(f"{where}: unknown option {unknown[0]!r}; {kind} takes {', '.join(known)}")
        if options.get("normaliser", "none") not in NORMALISERS:
            raise EvaluationError(f"{where}: normaliser must be one of {', '.join(NORMALISERS)}")
        if unknown := sorted(set(options.get("scores", ())) - set(METRICS)):
            raise EvaluationError(f"{where}: unknown score {unknown[0]!r}; known: {', '.join(METRICS)}")


def _earlier_answers(folder: Path, settings: dict) -> dict[tuple[str, str], str]:
    """Answers already in the folder, (control, id) -> text, after checking that they are of this evaluation."""
    path = folder / SETTINGS
    if path.exists():
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(settings))
        if different := [name for name in now if before.get(name) != now[name]]:
            raise EvaluationError(
                f"{folder} holds answers of another evaluation ({', '.join(different)} differ): "
                "delete that folder or choose another one"
            )
    _write(path, json.dumps(settings, indent=1) + "\n")
    answers = {}
    for name in (PREDICTIONS, f".{PREDICTIONS}.partial"):
        if (folder / name).exists():
            text = (folder / name).read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # the line an interruption cut off is answered again
            if whole != text:
                _write(folder / name, whole)
            for line in whole.split("\n")[:-1]:  # splitlines would split within texts, at U+2028
                record = json.loads(line)
                answers[record["control"], record["id"]] = record["prediction"]
    return answers


def _digest(rows: Sequence[dict]) -> str:
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise EvaluationError(f"the id {repeated!r} occurs more than once; ids must be unique in a test set")
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
