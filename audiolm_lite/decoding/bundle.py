"""A model with its tokenizer and prompt template, which answers questions about audio."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from audiolm_lite.data.batching import Item, collate
from audiolm_lite.decoding.backend import Backend, eager_backend
from audiolm_lite.decoding.generate import Sampling
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.ctc import CTCHead


@dataclass
class ModelBundle:
    """A model with everything that its prompts and answers need.

    Attributes
    ----------
    model : AudioLanguageModel
        Adapter, LLM and encoder, in eval mode. The encoder may be missing if items have stored features.
    tokenizer : PreTrainedTokenizerBase
        The LLM's tokenizer.
    template : PromptTemplate
        The same as in training.
    generation : dict
        Default options of generation: `max_new_tokens`, and either fields of `decoding.Sampling` or `beams` and
        `length_penalty`. Without these, decoding is greedy.
    instructions : dict
        The questions of `AudioLM.transcribe` and `AudioLM.caption`, under "transcribe" and "caption".
    identity : str
        SHA-256 of the configuration and the trained tensors.
    ctc_head : mapping or None
        Tensors of the adapter's CTC head (see `modeling.ctc`), if it was trained with a CTC start.
    """

    model: AudioLanguageModel
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    generation: dict[str, Any]
    instructions: dict[str, str]
    identity: str
    ctc_head: Mapping[str, Tensor] | None = None

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end an answer: those of the template, which training used, and of the LLM's own settings."""
        llm_ids = getattr(getattr(self.model.llm, "generation_config", None), "eos_token_id", None)
        llm_ids = [llm_ids] if isinstance(llm_ids, int) else list(llm_ids or [])
        return sorted({*self.template.end_ids(self.tokenizer), *llm_ids})

    @torch.no_grad()
    def answer(
        self, items: Sequence[Item], generation: Mapping[str, Any] | None = None, backend: Backend | None = None
    ) -> list[str]:
        """Answer one batch of prompts.

        Parameters
        ----------
        items : sequence of Item
            Prompts without answers, with features or waveforms.
        generation : dict, optional
            Entries that replace those of `self.generation`. A sampled answer depends on the item's id and the `seed`,
            not on the batch.
        backend : Backend, optional
            A backend of this model's LLM; eager if None.

        Returns
        -------
        list of str
            Answers without special tokens and surrounding spaces.

        Raises
        ------
        ValueError
            `beams` together with options of sampling, or a batch that does not fit the backend's cache.
        """
        options = {**self.generation, **(generation or {})}
        search = {"max_new_tokens": options.pop("max_new_tokens"), "eos_ids": self.eos_ids}
        beams = options.pop("beams", 1)
        if beams > 1:
            search |= {"beams": beams, "length_penalty": options.pop("length_penalty", 1.0)}
            if options:
                raise ValueError(
                    f"generation: beams {beams} and {', '.join(options)} cannot be combined; remove one of them"
                )
        elif options:
            seed = options.pop("seed", 0)
            seeds = [seed + zlib.crc32(item.row["id"].encode()) for item in items]
            search["sampling"] = Sampling(**options, seed=seeds)
        batch = collate(items, side="left").to(self.model.embedding.weight.device)
        backend = backend or eager_backend(self.model.llm)
        run = backend.beam_search if beams > 1 else backend.generate
        tokens = run(self.model.embed(batch), batch.attention_mask, **search)
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @cached_property
    def _head(self) -> CTCHead:
        if self.ctc_head is None:
            raise ValueError("The model has no CTC head; train a stage with ctc_start.")
        return CTCHead.from_tensors(self.ctc_head, self.model.embedding)

    @torch.no_grad()
    def adapter_transcripts(self, items: Sequence[Item]) -> list[str]:
        """Transcribe the clips of each item by the greedy CTC of its audio tokens, without the LLM.

        Raises
        ------
        ValueError
            The model has no CTC head.
        """
        batch = collate(items).to(self.model.embedding.weight.device)
        texts = self._head.transcribe(*self.model.audio_tokens(batch), self.tokenizer)
        clips = iter(texts)
        return [" ".join(next(clips) for _ in item.clips) for item in items]
