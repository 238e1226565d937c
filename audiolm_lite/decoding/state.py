"""The two functions that every backend runs: `prefill` and `decode_step` over a static key/value cache.

As in gpt-fast (https://github.com/pytorch-labs/gpt-fast), the cache consists of plain tensors of fixed shapes, so that
`torch.compile`, `torch.export` and CUDA graphs capture a step once and replay it.

Each row is stored from slot 0 of the cache on, on whichever side the batch was padded: `prefill` moves the padding
after the text, where the causal mask hides it. The number of filled slots of a row is then the next slot to write, the
rotary position and, compared with the slot index, the attention mask. A sliding window is part of the mask.

LLMs with recurrent layers have a `GrowingCache` in its place, and cannot be compiled.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig

from audiolm_lite.decoding.growing_cache import GrowingCache
from audiolm_lite.modeling.llm_layers import (
    additive,
    attention_masks,
    check_llm,
    is_recurrent,
    unknown_layers,
    word_embeddings,
)
from audiolm_lite.modeling.logits import llm_logits, logit_rescaling
from audiolm_lite.modeling.lora import unwrap_peft

# Files whose code a compiled step contains.
TRACED_FILES = [__file__, inspect.getfile(attention_masks), inspect.getfile(llm_logits)]

# Types that keep other tensors than keys and values, return no cache, take masks of the batch's size only, or count
# their windows from the end of the cache.
_REFUSED = {"dory", "gpt_neo", "recurrent_gemma", "xglm"}


@dataclass
class DecodeState:
    """Static key/value cache of a batch; `prefill` and `decode_step` change it in place.

    Attributes
    ----------
    keys, values : list of Tensor
        One tensor [B, kv_heads, C, head_dim] per layer in the LLM's dtype; C is the capacity in tokens.
    position : Tensor
        [B] int64, filled slots of each row.
    growing : GrowingCache or None
        In place of keys and values, the cache of an LLM with recurrent layers; C is `growing.max_length`.
    """

    keys: list[Tensor]
    values: list[Tensor]
    position: Tensor
    growing: GrowingCache | None = None

    @classmethod
    def allocate(cls, llm: nn.Module, batch_size: int, max_length: int) -> "DecodeState":
        """Allocate an empty cache.

        Parameters
        ----------
        llm : nn.Module
            Causal language model of transformers, PEFT-wrapped or not.
        batch_size : int
            Rows B.
        max_length : int
            Capacity C in tokens: prompt and answer together.

        Raises
        ------
        ValueError
            As in `check_decoding`.
        """
        check_decoding(llm, max_length)
        weight = unwrap_peft(llm).get_input_embeddings().weight
        position = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        if is_recurrent(llm):
            return cls([], [], position, GrowingCache(max_length))
        shape = batch_size, *_usual_shape(unwrap_peft(llm).config.get_text_config(), max_length)
        layers = range(unwrap_peft(llm).config.get_text_config().num_hidden_layers)
        return cls([weight.new_zeros(shape) for _ in layers], [weight.new_zeros(shape) for _ in layers], position)

    @property
    def batch_size(self) -> int:
        """Rows B."""
        return self.position.shape[0]

    @property
    def max_length(self) -> int:
        """Capacity C in tokens."""
        return self.growing.max_length if self.growing is not None else self.keys[0].shape[2]

    def copy_rows(self, other: "DecodeState", source: Tensor) -> None:
        """Fill each row from the row `source` [B] of a cache that is as large or smaller, which may be this one.

        In place, because compiled backends keep the addresses of the tensors.
        """
        if self.growing is not None:
            assert other.growing is not None
            self.growing.copy_rows(other.growing, source)
        for tensors, others in ((self.keys, other.keys), (self.values, other.values)):
            for layer, tensor in enumerate(others):
                _fitting(tensors, layer, tensor)[:, :, : tensor.shape[2]] = tensor[source]
        self.position.copy_(other.position[source])


def _usual_shape(config: PretrainedConfig, max_length: int) -> tuple[int, int, int]:
    """Heads, tokens and dimensions of the cache of most LLMs. `prefill` corrects that of the others."""
    # Configurations with other sizes in some layers list one per layer.
    layer: Any = next(iter(getattr(config, "per_layer_config", None) or [config]))
    heads = layer.num_attention_heads
    dim = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return getattr(layer, "num_key_value_heads", None) or heads, max_length, dim


def _fitting(tensors: list[Tensor], layer: int, like: Tensor) -> Tensor:
    """The cache of a layer, allocated again if `like` [B, kv_heads, S, head_dim] has other heads or dimensions."""
    old = tensors[layer]
    if (old.shape[1], old.shape[3]) != (like.shape[1], like.shape[3]):
        tensors[layer] = old.new_zeros(old.shape[0], like.shape[1], old.shape[2], like.shape[3])
    return tensors[layer]


def prefill(llm: nn.Module, state: DecodeState, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
    """Process the prompts and predict each row's first new token.

    Parameters
    ----------
    llm : nn.Module
        Causal language model of transformers (Llama, Qwen, ...), PEFT-wrapped or not, in eval mode.
    state : DecodeState
        Cache, empty or used; overwritten from slot 0 on.
    inputs_embeds : Tensor
        [B, S, H] prompt embeddings, S at most the capacity; values at padded positions have no effect.
    attention_mask : Tensor
        [B, S] bool or int, true at the prompt's own positions: padding left, right or in between. No row may be empty.

    Returns
    -------
    Tensor
        [B, V] float32 logits after each row's last token.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes, initializer_range=0.0)).eval().requires_grad_(False)
    >>> llm.model.embed_tokens.weight.data = torch.eye(8)
    >>> llm.lm_head.weight.data = torch.eye(8).roll(1, 0)  # after token n, the most likely one is n + 1
    >>> state = DecodeState.allocate(llm, batch_size=1, max_length=4)
    >>> prefill(llm, state, torch.eye(8)[None, 3:5], torch.ones(1, 2)).argmax(-1), state.position
    (tensor([5]), tensor([2]))
    """
    mask = attention_mask.bool()
    lengths = mask.sum(1)
    if state.growing is not None:
        last = state.growing.prefill(llm, inputs_embeds, mask)
        state.position.copy_(lengths)
        return llm_logits(llm, last).float()
    order = torch.argsort((~mask).long(), dim=1, stable=True)
    slots = torch.arange(mask.shape[1], device=mask.device)
    embeds = inputs_embeds.gather(1, order[:, :, None].expand_as(inputs_embeds))
    padding = (slots >= lengths[:, None])[:, :, None]
    embeds = embeds.masked_fill(padding, 0.0)  # a NaN there would spread through 0 * NaN
    hidden = _run(llm, embeds, slots[None], slots, slots.expand_as(mask), _SlotCache(state, None))
    state.position.copy_(lengths)
    last = hidden[torch.arange(hidden.shape[0], device=hidden.device), lengths - 1]
    return llm_logits(llm, last).float()


def decode_step(llm: nn.Module, state: DecodeState, token: Tensor) -> Tensor:
    """Advance every row by one token.

    Writes keys and values at `state.position` and adds one to it. The caller ensures that no position reaches the
    capacity: a check here would make the host wait for the device at every token.

    Parameters
    ----------
    llm : nn.Module
        As in `prefill`.
    state : DecodeState
        Cache after `prefill` or an earlier step.
    token : Tensor
        [B] int64, the last token of each row.

    Returns
    -------
    Tensor
        [B, V] float32 logits of the next token.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes, initializer_range=0.0)).eval().requires_grad_(False)
    >>> llm.model.embed_tokens.weight.data = torch.eye(8)
    >>> llm.lm_head.weight.data = torch.eye(8).roll(1, 0)  # after token n, the most likely one is n + 1
    >>> state = DecodeState.allocate(llm, batch_size=1, max_length=4)
    >>> decode_step(llm, state, torch.tensor([5])).argmax(-1), state.position
    (tensor([6]), tensor([1]))
    """
    position = state.position
    embeds = word_embeddings(llm, token)[:, None]
    if state.growing is not None:
        last = state.growing.step(llm, embeds, position)
    else:
        slots = torch.arange(state.max_length, device=token.device)
        last = _run(llm, embeds, position[:, None], slots, position[:, None], _SlotCache(state, position))[:, 0]
    logits = llm_logits(llm, last).float()
    position.add_(1)
    return logits


class _SlotCache(Cache):
    """The cache interface of transformers: attention layers pass their new keys and values and receive all of them."""

    def __init__(self, state: DecodeState, position: Tensor | None):
        super().__init__(layers=[])
        self.state = state
        self.position = position  # [B] slots to write; None: slots 0..S-1 of every row (prefill)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """key, value [B, kv_heads, S, head_dim] of one layer -> the keys and values to attend to."""
        if self.position is None:
            keys, values = _fitting(self.state.keys, layer_idx, key), _fitting(self.state.values, layer_idx, value)
            slots = torch.arange(key.shape[2], device=key.device)  # a slice would fix S != C in exported graphs
            keys[:, :, slots] = key.to(keys.dtype)
            values[:, :, slots] = value.to(values.dtype)
            return key, value  # attention over the S prompt positions, not the full capacity
        keys, values = self.state.keys[layer_idx], self.state.values[layer_idx]
        rows = torch.arange(key.shape[0], device=key.device)
        keys[rows, :, self.position] = key[:, :, 0].to(keys.dtype)
        values[rows, :, self.position] = value[:, :, 0].to(values.dtype)
        return keys, values

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Return 0: transformers uses it only for default masks and positions, which are always given here."""
        return 0


def _run(
    llm: nn.Module, embeds: Tensor, queries: Tensor, slots: Tensor, position_ids: Tensor, cache: _SlotCache
) -> Tensor:
    """Hidden states [B, S, H] after the final norm; `queries` [B or 1, S] are the slots of the inputs, `slots` [K]."""
    causal_lm = unwrap_peft(llm)
    mask = attention_masks(
        causal_lm.config.get_text_config(), queries, slots, lambda visible: additive(visible, embeds.dtype)
    )
    output = causal_lm.base_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
    )
    return output.last_hidden_state


def check_decoding(llm: nn.Module, max_length: int) -> None:
    """Check that an LLM can be decoded, without allocating a cache.

    Parameters
    ----------
    llm : nn.Module
        Causal language model of transformers, PEFT-wrapped or not, on any device.
    max_length : int
        Capacity in tokens.

    Raises
    ------
    ValueError
        The LLM has layers or an output layer with which the cache or the logits would be wrong, or `max_length` exceeds
        its positions.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> check_decoding(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)), max_length=64)
    """
    config = unwrap_peft(llm).config.get_text_config()
    name = type(config).__name__
    check_llm(llm)
    logit_rescaling(llm)
    if config.model_type in _REFUSED:
        raise ValueError(f"{name}: its cache is not supported")
    if unknown := unknown_layers(llm):
        raise ValueError(f"{name}: layers of the kind {', '.join(unknown)} are not supported in this LLM")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ValueError(
            f"{name}: max_length {max_length} is beyond max_position_embeddings {positions}; "
            "shorten the prompt or lower max_new_tokens"
        )
