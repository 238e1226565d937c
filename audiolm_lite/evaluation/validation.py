"""Validation by what the model really answers to a part of the validation set, scored as in evaluation.

Loss and accuracy judge each token after the right ones; a word error rate or CIDEr-D judges what users will get.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Subset

from audiolm_lite.audio.files import AudioError
from audiolm_lite.config.errors import ConfigError
from audiolm_lite.data.batching import LengthBucketSampler
from audiolm_lite.data.dataset import AudioTextDataset
from audiolm_lite.decoding.bundle import ModelBundle
from audiolm_lite.distributed import processes
from audiolm_lite.evaluation.report import SHOWN
from audiolm_lite.evaluation.runner import check_metrics, score_task
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.transformer_blocks import set_attention

logger = logging.getLogger(__name__)

DEFAULTS = {"items": 100, "every": 1, "generation": {}}
SHOWN_SAMPLES = 4


class Sample(NamedTuple):
    """An answer to show: the manifest row, what the model said, and its clip's samples [S] where they can be read."""

    row: dict
    answer: str
    waveform: Tensor | None


class AnswerValidation:
    """Answers to items of the validation set, spread evenly over it.

    Parameters
    ----------
    model : AudioLanguageModel
        The model in training.
    dataset : AudioTextDataset
        The validation set.
    hparams : mapping
        `valid_answers` ({metrics, items, every, generation}), `generation` (of which the other replaces entries),
        `batch_tokens`, `num_workers`, `attention`.
    together : bool
        All processes answer every item at the same time, as they must where each has only a share of the model;
        otherwise they share the items out.
    limit : int, optional
        Most items, whatever `valid_answers` says.

    Attributes
    ----------
    every : int
        Epochs from one such validation to the next.

    Raises
    ------
    ConfigError
        Entries that `valid_answers` does not have, or no metrics.
    EvaluationError
        A task without a metric, or unknown options.
    """

    def __init__(
        self,
        model: AudioLanguageModel,
        dataset: AudioTextDataset,
        hparams: Mapping,
        together: bool,
        limit: int | None = None,
    ):
        options = {**DEFAULTS, **hparams["valid_answers"]}
        if unknown := sorted(options.keys() - {*DEFAULTS, "metrics"}):
            raise ConfigError(f"valid_answers: unknown entry {unknown[0]!r}; it takes metrics, {', '.join(DEFAULTS)}")
        if not options.get("metrics"):
            raise ConfigError("valid_answers: metrics is missing; give task -> {type: asr, ...} as in evaluation")
        for name in ("items", "every"):
            if type(options[name]) is not int or options[name] < 1:
                raise ConfigError(f"valid_answers: {name} is {options[name]!r}; write a whole number, 1 at least")
        self.prompts, self.metrics, self.every = dataset.without_answers(), options["metrics"], options["every"]
        generation = {"max_new_tokens": 100, **(hparams["generation"] or {}), **options["generation"]}
        tokenizer, template = dataset.prompt.tokenizer, dataset.prompt.template
        self.bundle = ModelBundle(model, tokenizer, template, generation, {}, identity="in training")
        count = min(options["items"], len(dataset), limit or len(dataset))
        self.chosen = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
        self.rows = [dataset.rows[index] for index in self.chosen]
        check_metrics(self.metrics, sorted({row["task"] for row in self.rows}))
        self.together, self.attention = together, hparams["attention"]
        self.batch_tokens, self.num_workers = hparams["batch_tokens"], hparams["num_workers"]
        self._waveforms: dict[int, Tensor | None] = {}

    def run(self, between: Callable[[], Any]) -> tuple[dict[str, float], list[Sample]]:
        """Answer and score; all processes have to.

        Parameters
        ----------
        between : callable
            Called after each batch, as often in every process.

        Returns
        -------
        dict
            "task/score" -> value, the same in every process. A score that is missing or undefined is left out.
        list of Sample
            A few answers.
        """
        self.bundle.model.eval()
        with self._ready():
            texts = self._answers(between)
        scores = {}
        for task in sorted({row["task"] for row in self.rows}):
            places = [place for place, row in enumerate(self.rows) if row["task"] == task]
            found = score_task([self.rows[p] for p in places], [texts[p] for p in places], self.metrics[task])
            for column in SHOWN[found["type"]]:
                value = found.get(column.name)
                if isinstance(value, Mapping):
                    logger.warning("validation, task %s: %s is missing: %s", task, column.title, value)
                elif value is not None:
                    scores[f"{task}/{column.name}"] = value
        return scores, [Sample(self.rows[p], texts[p], self._waveform(p)) for p in range(len(texts))[:SHOWN_SAMPLES]]

    def _answers(self, between: Callable[[], Any]) -> list[str]:
        """Texts of all chosen items, from all processes."""
        rank, size = (0, 1) if self.together else (processes.rank(), processes.world_size())
        lengths = [self.prompts.lengths[index] for index in self.chosen]
        batches = LengthBucketSampler(lengths, self.batch_tokens, shuffle=False).batches(0)
        mine, rounds = batches[rank::size], -(-len(batches) // size)
        reading = DataLoader(
            Subset(self.prompts, self.chosen),
            batch_sampler=mine,
            collate_fn=list,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # its own: training's must not be drawn from
        )
        items, found = iter(reading), {}
        for number in range(rounds):
            error = None
            try:
                if number < len(mine):
                    found |= dict(zip(mine[number], self.bundle.answer(next(items))))
            except Exception as raised:
                error = raised
            processes.any_rank(error)
            between()
        everything = {place: text for texts in processes.gather(found) for place, text in texts.items()}
        return [everything[place] for place in range(len(self.chosen))]

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Whole tensors outside of the blocks, which gather their own, and an attention that takes a cache."""
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

    def _waveform(self, place: int) -> Tensor | None:
        """Samples of a chosen item's clip; with stored features the audio may be elsewhere by now."""
        if place not in self._waveforms:
            try:
                self._waveforms[place] = self.prompts.own_clip(self.chosen[place])
            except AudioError:
                self._waveforms[place] = None
        return self._waveforms[place]
