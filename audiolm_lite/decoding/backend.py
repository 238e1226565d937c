"""A language model that is ready to generate: the model, and the two functions that every backend has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from audiolm_lite.decoding.beam import beam_search
from audiolm_lite.decoding.generate import generate
from audiolm_lite.decoding.state import DecodeState, decode_step, prefill


@dataclass(frozen=True)
class Backend:
    """A language model that is ready to generate.

    Attributes
    ----------
    name : str
        "eager", "inductor", "aoti", "cpu", or another of `deploy.cpu.backend.BACKENDS`.
    llm : nn.Module
        The model. A backend of PyTorch reads the weights of this object, so do not move or cast it. The cpu backends
        have a copy of them.
    prefill, decode_step : callable
        As in `audiolm_lite.decoding.state`, with the same arguments.
    state : DecodeState or None
        The cache for which they were compiled. None (eager, cpu): a cache of any size can be used.
    compile_seconds : float
        Time of exporting, compiling and loading.
    """

    name: str
    llm: nn.Module
    prefill: Callable[[nn.Module, DecodeState, Tensor, Tensor], Tensor]
    decode_step: Callable[[nn.Module, DecodeState, Tensor], Tensor]
    state: DecodeState | None
    compile_seconds: float

    def generate(self, inputs_embeds: Tensor, attention_mask: Tensor, **options: Any) -> list[list[int]]:
        """Call `decoding.generate` with this backend; the batch may have fewer rows than the cache."""
        return generate(
            self.llm,
            inputs_embeds,
            attention_mask,
            prefill=self.prefill,
            decode_step=self.decode_step,
            state=self.state,
            **options,
        )

    def beam_search(self, inputs_embeds: Tensor, attention_mask: Tensor, **options: Any) -> list[list[int]]:
        """Call `decoding.beam_search` with this backend, whose cache needs one row per beam of each prompt."""
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
    """Return the backend that runs plain PyTorch, with a cache of any size.

    Examples
    --------
    >>> backend = eager_backend(nn.Linear(2, 2))
    >>> backend.name, backend.state, backend.prefill is prefill
    ('eager', None, True)
    """
    return Backend("eager", llm, prefill, decode_step, state=None, compile_seconds=0.0)
