"""A language model ready to generate, with the two functions that every backend has."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from audiolm_lite.decoding.beam import beam_search
from audiolm_lite.decoding.generate import generate
from audiolm_lite.decoding.state import DecodeState, decode_step, prefill


@dataclass(frozen=True)
class Backend:
    """A language model ready to generate.

    Attributes
    ----------
    name : str
        "eager", "inductor" or "aoti".
    llm : nn.Module
        The model; a compiled back end goes on reading its weights where they lie, so do not move or cast it.
    prefill, decode_step : callable
        As in `audiolm_lite.decoding.state`, with the same arguments.
    state : DecodeState or None
        The cache they were compiled for. None (eager): any cache will do.
    compile_seconds : float
        Time spent exporting, compiling or loading.
    """

    name: str
    llm: nn.Module
    prefill: Callable[[nn.Module, DecodeState, Tensor, Tensor], Tensor]
    decode_step: Callable[[nn.Module, DecodeState, Tensor], Tensor]
    state: DecodeState | None
    compile_seconds: float

    def generate(self, inputs_embeds: Tensor, attention_mask: Tensor, **options) -> list[list[int]]:
        """`audiolm_lite.decoding.generate` on this back end; a batch of fewer rows than compiled for is fine."""
        return generate(
            self.llm,
            inputs_embeds,
            attention_mask,
            prefill=self.prefill,
            decode_step=self.decode_step,
            state=self.state,
            **options,
        )

    def beam_search(self, inputs_embeds: Tensor, attention_mask: Tensor, **options) -> list[list[int]]:
        """`audiolm_lite.decoding.beam_search` on this back end, which needs rows for all beams."""
        return beam_search(
            self.llm,
            inputs_embeds,
            attention_mask,
            prefill=self.prefill,
            decode_step=self.decode_step,
            state=self.state,
            **options,
        )


def eager_backend(llm: nn.Module) -> Backend:
    """The backend that runs plain PyTorch; a cache of any size fits it."""
    return Backend("eager", llm, prefill, decode_step, state=None, compile_seconds=0.0)
