"""Validation by generated answers to a part of the validation set, scored as in evaluation.

Loss and accuracy measure each token after the correct previous ones. A word error rate or CIDEr-D measures the answers
that users get.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Subset

from audiolm_lite.audio.errors import AudioError
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import Item, LengthBucketSampler
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.data.readable import ReadableItems, Unreadable
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.decoding.options import read_options, replace_options
from audiolm_lite.distributed import processes
from audiolm_lite.evaluation.metrics.registry import FAMILIES, check_metrics, score_task
from audiolm_lite.modeling.attention import set_attention
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel

logger = logging.getLogger(__name__)

DEFAULTS: dict[str, Any] = {"items": 100, "every": 1, "generation": {}}
DEFAULT_NEW_TOKENS = 100
LOSSES = ("loss", "accuracy")  # metrics without answers
LOGGED_SAMPLES = 4


class Sample(NamedTuple):
    """An answer for the training log.

    Attributes
    ----------
    row : dict
        The manifest row.
    answer : str
        The model's answer.
    waveform : Tensor or None
        Samples [S] of the clip; None if its file cannot be read.
    """

    row: dict
    answer: str
    waveform: Tensor | None


def choose_answers(
    dataset: AudioTextDataset, hparams: Mapping[str, Any], limit: int | None = None
) -> tuple[dict[str, Any], list[int]]:
    """Check `valid_answers`, and choose the items that are answered.

    Parameters
    ----------
    dataset, hparams, limit
        As in `AnswerValidation`.

    Returns
    -------
    options : dict
        `valid_answers` with its defaults; `generation` also has the entries of the key of that name.
    chosen : list of int
        Items of the dataset.

    Raises
    ------
    ConfigError, GenerationError
        As in `AnswerValidation`.
    """
    options = {**DEFAULTS, **hparams["valid_answers"]}
    if unknown := sorted(options.keys() - {*DEFAULTS, "metrics"}):
        raise ConfigError(f"valid_answers: unknown entry {unknown[0]!r}; it takes metrics, {', '.join(DEFAULTS)}")
    if not options.get("metrics"):
        raise ConfigError("valid_answers: metrics is missing; write task: {type: asr, ...} as for evaluation")
    for name in ("items", "every"):
        if type(options[name]) is not int or options[name] < 1:
            raise ConfigError(f"valid_answers: {name} is {options[name]!r}; write a whole number of at least 1")
    generation = {"max_new_tokens": DEFAULT_NEW_TOKENS, **(hparams["generation"] or {})}
    options["generation"] = replace_options(generation, options["generation"] or {})
    read_options(options["generation"])
    count = min(options["items"], len(dataset), limit or len(dataset))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
    check_metrics(options["metrics"], sorted({dataset.rows[index]["task"] for index in chosen}))
    return options, chosen


def check_validation(
    dataset: AudioTextDataset, hparams: Mapping[str, Any], limit: int | None = None, others: bool = False
) -> None:
    """Check before anything is trained that validation can compute `valid_metric`.

    A metric of the answers is computed once with the targets in place of answers, so that missing programs and fields
    are found now.

    Parameters
    ----------
    dataset, hparams, limit
        As in `AnswerValidation`; `valid_answers` may be None.
    others : bool
        The training loop has a `validate` of its own, which may compute other metrics than loss and accuracy.

    Raises
    ------
    ConfigError
        Validation does not compute the metric; the message has those that it does.
    GenerationError
        `valid_answers` has options of generation that cannot be used.
    """
    best, _, metric = hparams["valid_metric"].rpartition(":")
    if best not in ("", "min", "max"):
        raise ConfigError(f"valid_metric is {hparams['valid_metric']!r}; write {metric}, min:{metric} or max:{metric}")
    known = list(LOSSES)
    missing: dict[str, Mapping[str, Any]] = {}
    if hparams["valid_answers"] is not None:
        options, chosen = choose_answers(dataset, hparams, limit)
        rows = [dataset.rows[index] for index in chosen]
        for task in sorted({row["task"] for row in rows}):
            entry = options["metrics"][task]
            if not metric.startswith(f"{task}/"):
                known += [f"{task}/{column.name}" for column in FAMILIES[entry["type"]].columns]
                continue
            of_task = [row for row in rows if row["task"] == task]
            scores, absent = _columns(score_task(of_task, [row["target"] for row in of_task], entry))
            known += [f"{task}/{name}" for name in scores]
            missing |= {f"{task}/{name}": reason for name, reason in absent.items()}
    if metric in missing:
        raise ConfigError(f"valid_metric: {metric} is missing: {missing[metric]}")
    if metric not in known and not others:
        raise ConfigError(f"valid_metric: validation computes {', '.join(known)}, and not {metric}")


def _columns(result: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Mapping[str, Any]]]:
    """Scores of a task that reports show and that have a value, and the reasons of those that are missing."""
    values = {column.name: result.get(column.name) for column in FAMILIES[result["type"]].columns}
    missing = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    return {name: v for name, v in values.items() if v is not None and name not in missing}, missing


class AnswerValidation:
    """Generate and score answers to items of the validation set, which are spread evenly over it.

    Parameters
    ----------
    model : AudioLanguageModel
        The model in training.
    dataset : AudioTextDataset
        The validation set.
    hparams : mapping
        `valid_answers` ({metrics, items, every, generation}), `generation` (its entries are replaced by those in
        `valid_answers`), `batch_tokens`, `num_workers`, `attention`.
    sharded : bool
        Each process has only a shard of the model, so all processes answer every item together. Otherwise the items
        are split across processes.
    limit : int, optional
        Maximum number of items, in addition to that of `valid_answers`.
    ctc_head : mapping, optional
        Tensors of the adapter's CTC head, which the option `ctc_weight` needs.

    Attributes
    ----------
    every : int
        Epochs from one such validation to the next.
    unreadable : list of Unreadable
        Items of the last `run` that have no answer, since their audio cannot be read; the same in every process.

    Raises
    ------
    ConfigError
        `valid_answers` has unknown entries or no metrics, a task has no metrics, or a metric has unknown options.
    GenerationError
        As in `ModelBundle.options`.
    """

    def __init__(
        self,
        model: AudioLanguageModel,
        dataset: AudioTextDataset,
        hparams: Mapping,
        sharded: bool,
        limit: int | None = None,
        ctc_head: Mapping[str, Tensor] | None = None,
    ):
        options, self.chosen = choose_answers(dataset, hparams, limit)
        self.prompts, self.metrics, self.every = dataset.without_answers(), options["metrics"], options["every"]
        tokenizer, template = dataset.prompt.tokenizer, dataset.prompt.template
        self.bundle = ModelBundle(model, tokenizer, template, options["generation"], {}, "in training", ctc_head)
        self.bundle.options()  # an error of the options ends the run before the first epoch
        self.rows = [dataset.rows[index] for index in self.chosen]
        self.sharded, self.attention = sharded, hparams["attention"]
        self.batch_tokens, self.num_workers = hparams["batch_tokens"], hparams["num_workers"]
        self.unreadable: list[Unreadable] = []
        self._waveforms: dict[int, Tensor | None] = {}

    def run(
        self, after_batch: Callable[[], Any], known: Mapping[int, Unreadable] | None = None
    ) -> tuple[dict[str, float], list[Sample]]:
        """Answer and score. Collective: every process must call it.

        Parameters
        ----------
        after_batch : callable
            Called after each batch, the same number of times in every process.
        known : mapping, optional
            Index in the validation set -> item that is not tried, since its audio cannot be read.

        Returns
        -------
        dict
            "task/score" -> value, the same in every process. A score that is missing or undefined is left out.
        list of Sample
            A few answers.
        """
        self.bundle = replace(self.bundle)  # its CTC head has copies of the word embeddings, which may be trained
        self.bundle.model.eval()
        with self._ready_to_generate():
            texts = self._answers(after_batch, known or {})
        scores: dict[str, float] = {}
        for task in sorted({self.rows[i]["task"] for i in texts}):
            indices = [i for i in texts if self.rows[i]["task"] == task]
            result = score_task([self.rows[i] for i in indices], [texts[i] for i in indices], self.metrics[task])
            computed, missing = _columns(result)
            for name, reason in missing.items():
                logger.warning("validation, task %s: %s is missing: %s", task, name, reason)
            scores |= {f"{task}/{name}": value for name, value in computed.items()}
        return scores, [Sample(self.rows[i], texts[i], self._waveform(i)) for i in list(texts)[:LOGGED_SAMPLES]]

    def _answers(self, after_batch: Callable[[], Any], known: Mapping[int, Unreadable]) -> dict[int, str]:
        """Texts of the chosen items that can be read, by their number and in order, gathered from all processes."""
        rank, size = (0, 1) if self.sharded else (processes.rank(), processes.world_size())
        lengths = [self.prompts.lengths[index] for index in self.chosen]
        sampler = LengthBucketSampler(lengths, self.batch_tokens, shuffle=False, name=lambda i: self.rows[i]["id"])
        batches = sampler.batches(0)
        mine, rounds = batches[rank::size], -(-len(batches) // size)
        loader = DataLoader(
            Subset(ReadableItems(self.prompts, known), self.chosen),
            batch_sampler=mine,
            collate_fn=list,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # its own, so that training's random numbers do not change
        )
        items = iter(loader)
        texts: dict[int, str | Unreadable] = {}
        for number in range(rounds):
            error = None
            try:
                if number < len(mine):
                    texts |= self._answer(mine[number], next(items))
            except Exception as raised:
                error = raised
            processes.any_rank(error)
            after_batch()
        gathered = {number: text for answered in processes.gather(texts) for number, text in answered.items()}
        self.unreadable = [text for text in gathered.values() if isinstance(text, Unreadable)]
        return {number: text for number, text in sorted(gathered.items()) if isinstance(text, str)}

    def _answer(self, numbers: Sequence[int], read: Sequence[Item | Unreadable]) -> dict[int, str | Unreadable]:
        """Answers to the items of a batch; in place of one that cannot be read, what is wrong with it."""
        items = {number: item for number, item in zip(numbers, read) if isinstance(item, Item)}
        faults = {number: item for number, item in zip(numbers, read) if isinstance(item, Unreadable)}
        return faults | dict(zip(items, self.bundle.answer(list(items.values())) if items else []))

    @contextmanager
    def _ready_to_generate(self) -> Iterator[None]:
        """Unshard the tensors outside of the blocks, which unshard their own, and use an attention with a cache."""
        model = self.bundle.model
        if self.attention is not None:
            set_attention(model.llm, "sdpa")
        if isinstance(model, FSDPModule):
            model.unshard()
        try:
            yield
        finally:
            if isinstance(model, FSDPModule):
                model.reshard()
            if self.attention is not None:
                set_attention(model.llm, self.attention)

    def _waveform(self, index: int) -> Tensor | None:
        """Samples of a chosen item's clip; with stored features the audio may have been moved or deleted."""
        if index not in self._waveforms:
            try:
                self._waveforms[index] = self.prompts.own_clip(self.chosen[index])
            except AudioError:
                self._waveforms[index] = None
        return self._waveforms[index]
