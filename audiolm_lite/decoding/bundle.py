"""A model with its tokenizer and prompt template, which answers questions about audio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from audiolm_lite.config.precision import multiplies_bf16
from audiolm_lite.data.batching import Item, collate
from audiolm_lite.decoding.backend import Backend, eager_backend
from audiolm_lite.decoding.joint_ctc import JointChooser, PrefixScores, token_entries
from audiolm_lite.decoding.options import GenerationError, Options, read_options, replace_options
from audiolm_lite.decoding.repetition import cut_loop
from audiolm_lite.language.prompt import PromptTemplate
from audiolm_lite.modeling.audio_language_model import AudioLanguageModel
from audiolm_lite.modeling.ctc import CTCHead
from audiolm_lite.modeling.lora import is_quantized, merge_lora


class Answer(NamedTuple):
    """An answer, and what stopped it.

    Attributes
    ----------
    text : str
        Without special tokens and surrounding spaces.
    stopped : str or None
        "loop": it repeated itself, and the repeats were cut. "limit": it reached its limit of tokens. "silence": the
        clip is below `silence_level`, and the model was not asked. None: it ended.
    """

    text: str
    stopped: str | None


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
        Default options of generation, see `decoding.options`.
    instructions : dict
        The questions of `AudioLM.transcribe` and `AudioLM.caption`, under "transcribe" and "caption".
    identity : str
        SHA-256 of the configuration, of the trained tensors and of the digests of the pretrained models.
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

    @property
    def dtype(self) -> str:
        """Dtype in which the LLM computes, for example "bfloat16"."""
        return str(self.model.embedding.weight.dtype).removeprefix("torch.")

    def prepare(self, dtype: str = "auto") -> None:
        """Make the LLM fast at answering: merge its LoRA, then cast its weights; a quantised LLM stays as it is.

        Both change the model in memory, for every backend. A merged model cannot be saved; `merge_lora` logs what is
        done.

        Parameters
        ----------
        dtype : str
            "float32", "bfloat16" or "float16". "auto": an LLM in float32 is cast to bfloat16 if the device multiplies
            that (see `config.precision`); others keep their dtype.
        """
        llm = self.model.llm = merge_lora(self.model.llm)
        if dtype == "auto":
            native = self.dtype == "float32" and multiplies_bf16(self.model.embedding.weight.device)
            dtype = "bfloat16" if native else self.dtype
        if dtype == self.dtype or is_quantized(llm):
            return
        for parameter in llm.parameters():  # not the buffers: rotary frequencies must stay in float32
            parameter.data = parameter.data.to(getattr(torch, dtype))

    def options(self, generation: Mapping[str, Any] | None = None) -> Options:
        """Read the options of generation, where those of `generation` replace those of `self.generation`.

        Raises
        ------
        GenerationError
            Unknown options, options that exclude each other, or a `ctc_weight` for a model without CTC head.
        """
        options = read_options(replace_options(self.generation, generation or {}))
        if options.ctc_weight and self.ctc_head is None:
            raise GenerationError(
                f"generation: ctc_weight is {options.ctc_weight} and the model has no CTC head; train a stage with "
                "ctc_start, or set ctc_weight to 0"
            )
        return options

    def answer(
        self, items: Sequence[Item], generation: Mapping[str, Any] | None = None, backend: Backend | None = None
    ) -> list[str]:
        """Answer one batch of prompts; the texts of `answers`, which has the same parameters."""
        return [answer.text for answer in self.answers(items, generation, backend)]

    @torch.no_grad()
    def answers(
        self, items: Sequence[Item], generation: Mapping[str, Any] | None = None, backend: Backend | None = None
    ) -> list[Answer]:
        """Answer one batch of prompts.

        Parameters
        ----------
        items : sequence of Item
            Prompts without answers, with features or waveforms.
        generation : dict, optional
            Entries that replace those of `self.generation`. A sampled answer depends on the item's id and the `seed`,
            not on the batch. `ctc_weight` concerns the items with one clip whose row has the task "asr".
        backend : Backend, optional
            A backend of this model's LLM; eager if None.

        Returns
        -------
        list of Answer
            One per item. Its limit of tokens depends on the item's own clips, not on the batch.

        Raises
        ------
        GenerationError
            As in `options`.
        ValueError
            A batch that does not fit the backend's cache.
        """
        options = self.options(generation)
        silent = [options.is_silent(item.loudest) for item in items]
        if any(silent):
            asked = [item for item, quiet in zip(items, silent) if not quiet]
            answers = iter(self.answers(asked, {**(generation or {}), "silence_level": None}, backend) if asked else [])
            return [
                Answer("" if _wants_transcript(item) else options.silence_answer, "silence") if quiet else next(answers)
                for item, quiet in zip(items, silent)
            ]
        limits = [options.limit(item.seconds) for item in items]
        search = {
            "max_new_tokens": limits,
            "eos_ids": self.eos_ids,
            **options.search([item.row["id"] for item in items]),
        }
        batch = collate(items, side="left").to(self.model.embedding.weight.device)
        backend = backend or eager_backend(self.model.llm)
        run = backend.beam_search if options.beams > 1 else backend.generate
        audio = None
        if options.ctc_weight and (transcribed := [i for i, item in enumerate(items) if _is_transcription(item)]):
            audio = self.model.audio_tokens(batch)
            search["choose"] = self._joint_chooser(items, transcribed, audio, options.ctc_weight)
        rows = run(self.model.embed(batch, audio), batch.attention_mask, **search)
        stopped = ["limit" if len(row) == limit else None for row, limit in zip(rows, limits)]
        if options.stop_loops:
            cut = [cut_loop(row) for row in rows]
            rows = [row for row, _ in cut]
            stopped = ["loop" if looped else reason for (_, looped), reason in zip(cut, stopped)]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [Answer(text.strip(), reason) for text, reason in zip(texts, stopped)]

    @cached_property
    def _head(self) -> CTCHead:
        if self.ctc_head is None:
            raise ValueError("The model has no CTC head; train a stage with ctc_start.")
        return CTCHead.from_tensors(self.ctc_head, self.model.embedding)

    @cached_property
    def _token_entries(self) -> Tensor:
        return token_entries(
            self._head.pieces, self.tokenizer, self.model.causal_lm.get_output_embeddings().out_features
        )

    def _joint_chooser(
        self, items: Sequence[Item], rows: Sequence[int], audio: tuple[Tensor, Tensor], weight: float
    ) -> JointChooser:
        """Decode these rows of a batch jointly with the CTC of their only clips; `audio` has those of all items."""
        tokens, counts = audio
        before = np.cumsum([0, *(len(item.clips) for item in items)])  # clips of earlier items
        clips = torch.from_numpy(before[list(rows)]).to(tokens.device)
        scores = PrefixScores(self._head(tokens[clips]), counts[clips])
        return JointChooser(scores, rows, self._token_entries, self.eos_ids, weight)

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


def _wants_transcript(item: Item) -> bool:
    task = str(item.row.get("task"))
    return task.startswith("asr") or task == "no_speech"


def _is_transcription(item: Item) -> bool:
    """Whether the CTC helps: a transcript in the prompt is better than the adapter's own."""
    return item.row.get("task") == "asr" and len(item.clips) == 1 and not item.row.get("transcript")
