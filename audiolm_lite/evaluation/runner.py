"""Answers of a model to a test set with and without audio, and their scores: predictions.jsonl, metrics.json."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from audiolm_lite.config.errors import UserError
from audiolm_lite.data.batching import LengthBucketSampler
from audiolm_lite.data.controls import TRANSCRIPT
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.decoding.backend import Backend
from audiolm_lite.decoding.bundle import Answer, ModelBundle
from audiolm_lite.decoding.options import read_options
from audiolm_lite.evaluation.metrics.registry import check_metrics, score_task
from audiolm_lite.storage.atomic import write_json, write_text

PREDICTIONS, RESULTS, SETTINGS = "predictions.jsonl", "metrics.json", "evaluation.json"
# Answers are appended here while they are generated.
PARTIAL = f".{PREDICTIONS}.partial"
# The control whose answers are transcripts of the adapter's CTC head.
ADAPTER_ALONE = "adapter_alone"
# Slots of a template that every model has.
_USUAL_SLOTS = {"bos", "eos", "audio", "instruction", "answer"}


class EvaluationError(UserError, ValueError):
    """An evaluation that cannot be run; the message names the reason and the remedy."""


def evaluate(
    bundle: ModelBundle,
    datasets: Mapping[str, AudioTextDataset],
    metrics: Mapping[str, Mapping[str, Any]],
    folder: str | Path,
    *,
    batch_tokens: int = 4096,
    generation: Mapping[str, Any] | None = None,
    backend: Backend | None = None,
    num_workers: int = 0,
) -> dict[str, Any]:
    """Let a model answer every row of a test set under each control, and score the answers.

    Answers are stored as they are generated: an interrupted evaluation continues where it stopped, and a finished one
    is only scored again.

    Parameters
    ----------
    bundle : ModelBundle
        The model, on its device.
    datasets : mapping of str to AudioTextDataset
        Control ("normal", "zeros", "shuffled") -> the same rows with that control's audio, all without answers.
        "adapter_alone" -> rows that are transcribed by the bundle's CTC head, without the LLM. "transcript" -> rows
        whose field `transcript`, of a speech recogniser, is the answer, without any model.
    metrics : mapping of str to mapping
        Task -> how it is scored: `type`, a metric family, and its options. "asr" (normaliser). "classification"
        (labels, by default the row's field `labels`; the correct one is its field `label`, or else the target).
        "multi_label" (field with the list of correct labels, by default `sounds`; labels, by default all that are
        correct for some row). "regression" (field with the number; penalty of an unparsed answer). "captioning"
        (scores, see `captioning.METRICS`). "matched_caption" (matcher, see `matched_caption`: a second model maps a
        caption to one of the row's `labels`). "slots" (the target is "name: value; ..."). "no_text" (normaliser; for
        clips without speech).
    folder : path
        Receives `predictions.jsonl` (id, control, task, instruction, prediction, stopped, target, references),
        `metrics.json` and `evaluation.json`.
    batch_tokens : int
        Padded prompt tokens per batch.
    generation : mapping, optional
        Entries that replace those of `bundle.generation`.
    backend : Backend, optional
        Of the bundle's LLM; eager if None.
    num_workers : int
        Processes that read features or audio.

    Returns
    -------
    dict
        Content of `metrics.json`: `controls` {control: {task: scores, their `type`, and `stopped`}}, `items`,
        `prompt_fields` {field of the template, such as transcript: {with, without}: rows with and without text in it},
        `generation`, `backend`, `model`, `dtype`, `rows`. `stopped` {loop, limit} counts the answers that did not end
        themselves. A task with rows of several datasets also has scores per dataset, under "task, dataset".

    Raises
    ------
    ConfigError
        A task without metrics, or an unknown type or option.
    EvaluationError
        The folder has the answers of another evaluation, or an id occurs more than once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = sorted({row["task"] for dataset in datasets.values() for row in dataset.rows})
    check_metrics(metrics, tasks)
    settings = {
        "model": bundle.identity,
        "dtype": bundle.dtype,
        "generation": asdict(read_options({**bundle.generation, **(generation or {})})),  # with today's defaults
        "backend": backend.name if backend else "eager",
        "rows": {control: _rows_hash(dataset.rows) for control, dataset in datasets.items()},
    }
    answers = _earlier_answers(folder, settings)
    for control, dataset in datasets.items():
        indices = [i for i, row in enumerate(dataset.rows) if (control, row["id"]) not in answers]
        batches = _answer_batches(bundle, dataset, indices, batch_tokens, generation, backend, num_workers, control)
        with (folder / PARTIAL).open("a", encoding="utf-8") as log:
            for rows, given in batches:
                for row, answer in zip(rows, given):
                    answers[control, row["id"]] = answer
                    log.write(json.dumps({"control": control, "id": row["id"], **_record(answer)}) + "\n")
                log.flush()

    fields = ("task", "instruction", "target", "references")
    lines = [
        {"id": row["id"], "control": control, **_record(answers[control, row["id"]]), **{f: row[f] for f in fields}}
        for control, dataset in datasets.items()
        for row in dataset.rows
    ]
    write_text(folder / PREDICTIONS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (folder / PARTIAL).unlink()
    controls = {
        control: {
            name: _scores(rows, [answers[control, row["id"]] for row in rows], metrics[rows[0]["task"]])
            for name, rows in _groups(dataset.rows, tasks)
        }
        for control, dataset in datasets.items()
    }
    every_row = max((dataset.rows for dataset in datasets.values()), key=len)
    added = _prompt_fields(bundle, every_row)
    result = {"controls": controls, "items": len(lines), "prompt_fields": added, **settings}
    write_json(folder / RESULTS, result)
    return result


def _scores(rows: Sequence[dict], answers: Sequence[Answer], metric: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of a task, and how many of its answers did not end themselves."""
    stopped = {reason: sum(answer.stopped == reason for answer in answers) for reason in ("loop", "limit")}
    return {**score_task(rows, [answer.text for answer in answers], metric), "stopped": stopped}


def _prompt_fields(bundle: ModelBundle, rows: Sequence[dict]) -> dict[str, dict[str, int]]:
    """Rows with and without text in each field that the template adds to question and audio."""
    counts = {}
    for field in sorted(bundle.template.slots - _USUAL_SLOTS):
        present = sum(bool(str(row.get(field) or "").strip()) for row in rows)
        counts[field] = {"with": present, "without": len(rows) - present}
    return counts


def _record(answer: Answer) -> dict[str, str | None]:
    return {"prediction": answer.text, "stopped": answer.stopped}


def _groups(rows: Sequence[dict], tasks: Sequence[str]) -> Iterator[tuple[str, list[dict]]]:
    """Rows of each task and, if a task has several datasets, of each of them as "task, dataset"."""
    for task in tasks:
        rows_of_task = [row for row in rows if row["task"] == task]
        if rows_of_task:
            yield task, rows_of_task
        datasets = sorted({row["dataset"] for row in rows_of_task})
        for dataset in datasets if len(datasets) > 1 else ():
            yield f"{task}, {dataset}", [row for row in rows_of_task if row["dataset"] == dataset]


def _answer_batches(
    bundle: ModelBundle,
    dataset: AudioTextDataset,
    indices: Sequence[int],
    batch_tokens: int,
    generation: Mapping[str, Any] | None,
    backend: Backend | None,
    num_workers: int,
    control: str,
) -> Iterator[tuple[list[dict], list[Answer]]]:
    """Yield the rows and answers of each batch of the items at `indices`, longest items first."""
    if not indices:
        return
    if control == TRANSCRIPT:
        rows = [dataset.rows[i] for i in indices]
        yield rows, [Answer(row[TRANSCRIPT], stopped=None) for row in rows]
        return
    lengths = [dataset.lengths[i] for i in indices]
    batches = LengthBucketSampler(lengths, batch_tokens, shuffle=False).batches(0)
    loader = DataLoader(Subset(dataset, indices), batch_sampler=batches, collate_fn=list, num_workers=num_workers)
    with tqdm(total=len(indices), desc=f"answers, audio {control}", unit="item") as progress:
        for items in loader:
            size = backend.state.batch_size if backend and backend.state else len(items)
            for start in range(0, len(items), size):
                batch = items[start : start + size]
                if control == ADAPTER_ALONE:
                    given = [Answer(text, stopped=None) for text in bundle.adapter_transcripts(batch)]
                else:
                    given = bundle.answers(batch, generation, backend)
                yield [item.row for item in batch], given
                progress.update(len(batch))


def _earlier_answers(folder: Path, settings: dict[str, Any]) -> dict[tuple[str, str], Answer]:
    """Answers that the folder already has, (control, id) -> answer, after a check that the settings are the same."""
    path = folder / SETTINGS
    if path.exists():
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(settings))
        if different := [name for name in now if before.get(name) != now[name]]:
            raise EvaluationError(
                f"{folder} has the answers of another evaluation ({', '.join(different)} differ); "
                "delete that folder or choose another one"
            )
    write_json(path, settings)
    answers = {}
    for file in (folder / PREDICTIONS, folder / PARTIAL):
        if file.exists():
            text = file.read_text(encoding="utf-8")
            complete = text[: text.rfind("\n") + 1]  # an interruption may have cut off the last line
            if complete != text:
                write_text(file, complete)
            for line in complete.split("\n")[:-1]:  # splitlines would also split at U+2028 inside an answer
                record = json.loads(line)
                answers[record["control"], record["id"]] = Answer(record["prediction"], record["stopped"])
    return answers


def _rows_hash(rows: Sequence[dict]) -> str:
    """SHA-256 of the rows, whose ids must be unique."""
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise EvaluationError(f"the id {repeated!r} occurs more than once; the ids of a test set must be unique")
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()
