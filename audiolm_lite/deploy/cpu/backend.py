"""`prefill` and `decode_step` of `decoding.state`, run by the C++ step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from audiolm_lite.decoding.state import DecodeState
from audiolm_lite.deploy.cpu.model import CpuModel
from audiolm_lite.modeling.lora import unwrap_peft

# Name of the backend -> number format of its weights. "cpu" gives the tokens of float32.
BACKENDS = {"cpu": "exact", "cpu-f32": "f32", "cpu-bf16": "bf16x2", "cpu-int8": "int8", "cpu-int4": "int4"}


def cpu_functions(model: CpuModel, llm: nn.Module) -> tuple[Callable, Callable]:
    """Return functions with the signatures and results of `decoding.state.prefill` and `decode_step`.

    Parameters
    ----------
    model : CpuModel
        The packed weights.
    llm : nn.Module
        The LLM from which they were packed; its embeddings are used.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).eval()
    >>> prefill, decode_step = cpu_functions(CpuModel(llm), llm)
    >>> state = DecodeState.allocate(llm, batch_size=1, max_length=4)
    >>> logits = prefill(llm, state, torch.ones(1, 2, 8), torch.ones(1, 2))
    >>> decode_step(llm, state, logits.argmax(-1)).shape, state.position
    (torch.Size([1, 8]), tensor([3]))
    """
    embeddings = unwrap_peft(llm).get_input_embeddings()

    def check(given: nn.Module) -> None:
        if given is not llm:
            raise ValueError("this backend was made for another model; make one for this model")

    def prefill(given: nn.Module, state: DecodeState, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        check(given)
        mask = attention_mask.bool()
        lengths = mask.sum(1)
        if mask.shape != (state.batch_size, inputs_embeds.shape[1]) or int(lengths.max()) > state.max_length:
            raise ValueError(
                f"prompts {list(inputs_embeds.shape)} with a mask {list(mask.shape)} do not fit a cache of "
                f"{state.batch_size} rows of {state.max_length} tokens"
            )
        # Padding is not computed: the tokens of all rows follow each other.
        rows, positions = mask.nonzero()[:, 0], (mask.cumsum(1) - 1)[mask]
        logits = model.step(state, inputs_embeds[mask], rows, positions, chosen=lengths.cumsum(0) - 1)
        state.position.copy_(lengths)
        return logits

    def decode_step(given: nn.Module, state: DecodeState, token: Tensor) -> Tensor:
        check(given)
        rows = torch.arange(state.batch_size)
        with torch.no_grad():
            embeds = embeddings(token)
        logits = model.step(state, embeds, rows, state.position, rows)
        state.position.add_(1)
        return logits

    return prefill, decode_step
