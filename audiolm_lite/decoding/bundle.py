"""A model with its tokenizer and prompt: what turns audio and a question into words."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from audiolm_lite.data.batching import Item, collate
from audiolm_lite.decoding.backend import Backend, eager_backend
from audiolm_lite.decoding.generate import Sampling
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel


@dataclass
class ModelBundle:
    """A model and what its prompts and answers need.

    Attributes
    ----------
    model : AudioLanguageModel
        Adapter, LLM and, unless features are given, encoder; in eval mode.
    tokenizer : PreTrainedTokenizerBase
        The LLM's.
    template : PromptTemplate
        As in training.
    generation : dict
        Default arguments of generation: `max_new_tokens`, and fields of `decoding.Sampling`, or `beams` and
        `length_penalty`; greedy without.
    instructions : dict
        What `AudioLM.transcribe` and `AudioLM.caption` ask ("transcribe", "caption").
    identity : str
        SHA-256 over the configuration and the trained tensors.
    """

    model: AudioLanguageModel
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    generation: dict[str, Any]
    instructions: dict[str, str]
    identity: str

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end an answer: the template's, which training used, and those of the LLM's own settings."""
        further = getattr(getattr(self.model.llm, "generation_config", None), "eos_token_id", None)
        further = [further] if isinstance(further, int) else list(further or [])
        return sorted({*self.template.end_ids(self.tokenizer), *further})

    @torch.no_grad()
    def answer(
        self, items: Sequence[Item], generation: dict[str, Any] | None = None, backend: Backend | None = None
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
            Of this model's LLM; eager if None.

        Returns
        -------
        list of str
            Without special tokens and surrounding spaces.
        """
        options = {**self.generation, **(generation or {})}
        search = {"max_new_tokens": options.pop("max_new_tokens"), "eos_ids": self.eos_ids}
        beams = options.pop("beams", 1)
        if beams > 1:
            search |= {"beams": beams, "length_penalty": options.pop("length_penalty", 1.0)}
            if options:
                raise ValueError(
                    f"generation: beams {beams} and {', '.join(options)} do not go together; leave one out"
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
