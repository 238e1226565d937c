"""Answers of a model to a test set with and without audio, and their scores: predictions.jsonl, metrics.json."""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.config.errors import UserError
from audiolm_lite.data.batching import Item, LengthBucketSampler
from audiolm_lite.data.controls import DEFINITIONS, TRANSCRIPT
from audiolm_lite.data.dataset import AudioTextDataset, LeftOut
from audiolm_lite.decoding.backend import Backend
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.decoding.options import Options, read_options, replace_options
from audiolm_lite.evaluation.metrics.registry import check_metrics, score_task
from audiolm_lite.storage.atomic import write_json, write_text

PREDICTIONS, RESULTS, SETTINGS = "predictions.jsonl", "metrics.json", "evaluation.json"
# Answers are appended here while they are generated.
PARTIAL = f".{PREDICTIONS}.partial"
log = logging.getLogger(__name__)
# The control whose answers are transcripts of the adapter's CTC head.
ADAPTER_ALONE = "adapter_alone"
# Slots of a template that every model has.
_USUAL_SLOTS = {"bos", "eos", "audio", "instruction", "answer"}


# `Answer.stopped` -> `finish_reason` in predictions.jsonl.
FINISH_REASONS = {None: "end_token", "limit": "length_limit", "loop": "loop", "silence": "silence"}
# Fields of a row that predictions.jsonl repeats.
_FIELDS = ("audio", "start", "language", "task", "dataset", "instruction", "target", "references")


class EvaluationError(UserError, ValueError):
    """An evaluation that cannot be run; the message names the reason and the remedy."""


class Answered(NamedTuple):
    """An answer to a row under a control.

    Attributes
    ----------
    text : str
        The answer.
    finish_reason : str or None
        A value of `FINISH_REASONS`; None for controls whose answers are not generated.
    seconds : float or None
        Duration of the audio that the model received; None if no model was asked.
    time : float or None
        Seconds that the answer took: those of its batch, from audio or features in memory to texts, divided by its
        items.
    encoder : bool
        The time includes the encoder's.
    """

    text: str
    finish_reason: str | None
    seconds: float | None = None
    time: float | None = None
    encoder: bool = False


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
    inputs: Mapping[str, Any] | None = None,
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
        Receives `predictions.jsonl`, `metrics.json` and `evaluation.json`. A line of `predictions.jsonl` has the fields
        id, audio, start, language, task, dataset, instruction, target, references and duration (s) of the row, control,
        prediction, `finish_reason` ("end_token"; "length_limit" or "loop": the answer was cut; "silence": the clip is
        below `silence_level`, and the model was not asked; null: not generated), seconds, time and encoder (see
        `Answered`), and `scores`, those of this answer.
    batch_tokens : int
        Padded prompt tokens per batch.
    generation : mapping, optional
        Entries that replace those of `bundle.generation`.
    backend : Backend, optional
        Of the bundle's LLM; eager if None.
    num_workers : int
        Processes that read features or audio.
    inputs : mapping, optional
        JSON values of what else the answers depend on, such as the seed of the controls; recorded and compared.

    Returns
    -------
    dict
        Content of `metrics.json`: `controls` {control: {task: scores, `type`, `stopped`, `silent`, `left_out` and
        `speed`}}, `definitions` {control: what the model receives}, `left_out` {control: {count, kinds: {kind: count},
        rows: {id: reason}}}, `items`, `prompt_fields` {field of the template, such as transcript: {with, without}: rows
        with and without text in it}, `generation`, `backend`, `model`, `dtype`, `rows`, and the entries of `inputs`.
        `stopped` {loop, limit} counts the answers that did not end themselves, `silent` the clips below
        `silence_level`, about which the model was not asked, `left_out` the rows that could not be answered. `speed`
        has `audio_seconds`, `answer_seconds` and `rtfx`, their ratio, or why it is missing; it is empty if no answer
        was timed. A task with rows of several datasets also has scores per dataset, under "task, dataset".

    Raises
    ------
    ConfigError
        A task without metrics, or an unknown type or option.
    EvaluationError
        The folder has the answers of another evaluation, or an id occurs more than once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    used = {row["task"] for dataset in datasets.values() for row in dataset.rows}
    tasks = sorted(used | {row.task for dataset in datasets.values() for row in dataset.omitted})
    check_metrics(metrics, tasks)
    settings = {
        "model": bundle.identity,
        "dtype": bundle.dtype,
        "generation": asdict(_options(bundle, generation)),  # today's defaults
        "backend": backend.name if backend else "eager",
        "rows": {control: _rows_hash(dataset.rows) for control, dataset in datasets.items()},
        **(inputs or {}),
    }
    answers = _earlier_answers(folder, settings)
    left_out = {control: {row.id: row for row in dataset.omitted} for control, dataset in datasets.items()}
    unreadable: dict[str, LeftOut] = {}  # in earlier controls; all then have the same rows
    for control, dataset in datasets.items():
        ids = [row["id"] for row in dataset.rows]
        left_out[control] |= {name: unreadable[name] for name in ids if name in unreadable}
        indices = [i for i, name in enumerate(ids) if (control, name) not in answers and name not in unreadable]
        batches = _answer_batches(bundle, dataset, indices, batch_tokens, generation, backend, num_workers, control)
        with (folder / PARTIAL).open("a", encoding="utf-8") as file:
            for rows, given in batches:
                for row, answer in zip(rows, given):
                    if isinstance(answer, LeftOut):
                        log.warning("%s is left out: %s", row["id"], answer.reason)
                        left_out[control][row["id"]] = answer
                        if control == "normal":
                            unreadable[row["id"]] = answer
                        continue
                    answers[control, row["id"]] = answer
                    file.write(json.dumps({"control": control, "id": row["id"], **_record(answer)}) + "\n")
                file.flush()

    controls: dict[str, dict[str, Any]] = {}
    lines = []
    for control, dataset in datasets.items():
        rows = [row for row in dataset.rows if row["id"] not in left_out[control]]
        of_rows = {row["id"]: answers[control, row["id"]] for row in rows}
        controls[control], per_item = _score(rows, of_rows, tasks, metrics, left_out[control].values())
        lines += [_line(control, row, of_rows[row["id"]], per_item[row["id"]]) for row in rows]
    write_text(folder / PREDICTIONS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (folder / PARTIAL).unlink()
    every_row = max((dataset.rows for dataset in datasets.values()), key=len)
    result = {
        "controls": controls,
        "definitions": {control: DEFINITIONS[control] for control in controls if control in DEFINITIONS},
        "left_out": {control: _summary(list(rows.values())) for control, rows in left_out.items()},
        "items": len(lines),
        "prompt_fields": _prompt_fields(bundle, every_row),
        **settings,
    }
    write_json(folder / RESULTS, result)
    return result


def _score(
    rows: Sequence[dict],
    answers: Mapping[str, Answered],
    tasks: Sequence[str],
    metrics: Mapping[str, Mapping[str, Any]],
    left_out: Iterable[LeftOut],
) -> tuple[dict[str, Any], dict[str, dict]]:
    """Scores of each task under one control, and the scores of each answer by the row's id."""
    missing = Counter(row.task for row in left_out)
    scores: dict[str, Any] = {}
    per_item: dict[str, dict] = {}
    for name, group in _groups(rows, tasks):
        given = [answers[row["id"]] for row in group]
        reasons = Counter(answer.finish_reason for answer in given)
        result = score_task(group, [answer.text for answer in given], metrics[group[0]["task"]])
        per_item |= dict(zip((row["id"] for row in group), result.pop("per_item")))
        result["stopped"] = {reason: reasons[FINISH_REASONS[reason]] for reason in ("loop", "limit")}
        result["silent"] = reasons[FINISH_REASONS["silence"]]
        scores[name] = {**result, "speed": _speed(given)}
    for task in tasks:
        if task in scores or missing[task]:
            scores.setdefault(task, {"type": metrics[task]["type"], "items": 0})["left_out"] = missing[task]
    return scores, per_item


def _speed(answers: Sequence[Answered]) -> dict[str, Any]:
    """Seconds of audio, seconds that the answers took, and the first divided by the second; empty without times."""
    timed = [answer for answer in answers if answer.time is not None and answer.seconds is not None]
    audio, taken = (sum(getattr(answer, name) for answer in timed) for name in ("seconds", "time"))
    if not taken:
        return {}
    rtfx: Any = audio / taken
    if not all(answer.encoder for answer in timed):
        rtfx = {"missing": "with stored features the encoder is not timed.", "command": "set feature_folder: null."}
    return {"audio_seconds": audio, "answer_seconds": taken, "rtfx": rtfx}


def _line(control: str, row: Mapping[str, Any], answer: Answered, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Line of predictions.jsonl."""
    duration = row["duration"]
    if duration is None and control not in ("zeros", "shuffled"):  # which have the length of another clip
        duration = answer.seconds
    fields = {field: row[field] for field in _FIELDS}
    fields |= {} if row.get("channel") is None else {"channel": row["channel"]}
    return {"id": row["id"], "control": control, **_record(answer), "duration": duration, **fields, "scores": scores}


def _summary(rows: Sequence[LeftOut]) -> dict[str, Any]:
    return {
        "count": len(rows),
        "kinds": dict(Counter(row.kind for row in rows)),
        "rows": {row.id: f"{row.kind}: {row.reason}" for row in rows},
    }


def _prompt_fields(bundle: ModelBundle, rows: Sequence[dict]) -> dict[str, dict[str, int]]:
    """Rows with and without text in each field that the template adds to question and audio."""
    counts = {}
    for field in sorted(bundle.template.slots - _USUAL_SLOTS):
        present = sum(bool(str(row.get(field) or "").strip()) for row in rows)
        counts[field] = {"with": present, "without": len(rows) - present}
    return counts


def _record(answer: Answered) -> dict[str, Any]:
    entries = answer._asdict()
    return {"prediction": entries.pop("text"), **entries}


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
) -> Iterator[tuple[list[dict], Sequence[Answered | LeftOut]]]:
    """Yield the rows and answers of each batch of the items at `indices`, longest items first."""
    if not indices:
        return
    if control == TRANSCRIPT:
        rows = [dataset.rows[i] for i in indices]
        yield rows, [Answered(row[TRANSCRIPT], None) for row in rows]
        return
    lengths = [dataset.lengths[i] for i in indices]
    sampler = LengthBucketSampler(lengths, batch_tokens, shuffle=False, name=lambda i: dataset.rows[indices[i]]["id"])
    batches = sampler.batches(0)
    gated = control != ADAPTER_ALONE and _options(bundle, generation).silence_level is not None
    readable = _Readable(dataset, indices, gated)
    loader = DataLoader(readable, batch_sampler=batches, collate_fn=list, num_workers=num_workers)
    with tqdm(total=len(indices), desc=f"answers, audio {control}", unit="item") as progress:
        for read in loader:
            unreadable = [item for item in read if isinstance(item, tuple)]
            if unreadable:
                yield [row for row, _ in unreadable], [fault for _, fault in unreadable]
            items = [item for item in read if not isinstance(item, tuple)]
            size = backend.state.batch_size if backend and backend.state else max(1, len(items))
            for start in range(0, len(items), size):
                batch = items[start : start + size]
                texts: list[tuple[str, str | None]]
                begin = time.perf_counter()
                if control == ADAPTER_ALONE:
                    texts = [(text, None) for text in bundle.adapter_transcripts(batch)]
                else:
                    texts = [(text, FINISH_REASONS[why]) for text, why in bundle.answers(batch, generation, backend)]
                each = (time.perf_counter() - begin) / len(batch)
                encoder = batch[0].features is None
                rows = [item.row for item in batch]
                yield rows, [Answered(*pair, item.seconds, each, encoder) for pair, item in zip(texts, batch)]
            progress.update(len(read))


class _Readable(Dataset):
    """Chosen items of a dataset; for one whose audio cannot be read, its row and the fault.

    With `levels`, items of stored features have the level of their audio files.
    """

    def __init__(self, dataset: AudioTextDataset, indices: Sequence[int], levels: bool = False):
        self.dataset, self.indices, self.levels = dataset, indices, levels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Item | tuple[dict, LeftOut]:
        index = self.indices[position]
        try:
            item = self.dataset[index]
            stored = self.levels and item.features is not None
            return replace(item, level=self.dataset.level(index)) if stored else item
        except AudioError as error:
            row = self.dataset.rows[index]
            return row, LeftOut(row["id"], row["task"], "unreadable", str(error))


def _options(bundle: ModelBundle, generation: Mapping[str, Any] | None) -> Options:
    return read_options(replace_options(bundle.generation, generation or {}))


def _earlier_answers(folder: Path, settings: dict[str, Any]) -> dict[tuple[str, str], Answered]:
    """Answers that the folder already has, (control, id) -> answer, after a check that the settings are the same."""
    path = folder / SETTINGS
    if path.exists():
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(settings))
        # What an earlier version did not record is not compared, nor an option of generation that it did not have.
        if "generation" in before:
            before["generation"] = {**now["generation"], **before["generation"]}
        if different := [name for name in now if name in before and before[name] != now[name]]:
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
                known = {name: record[name] for name in Answered._fields if name in record}
                known.setdefault("finish_reason", FINISH_REASONS[record.get("stopped")])  # of earlier versions
                answers[record["control"], record["id"]] = Answered(text=record["prediction"], **known)
    return answers


def _rows_hash(rows: Sequence[dict]) -> str:
    """SHA-256 of the rows, whose ids must be unique."""
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise EvaluationError(f"the id {repeated!r} occurs more than once; the ids of a test set must be unique")
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()
