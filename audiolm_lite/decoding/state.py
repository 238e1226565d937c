"""The two functions that every backend runs: `prefill` and `decode_step` over a static key/value cache.

As in gpt-fast (https://github.com/pytorch-labs/gpt-fast), the cache consists of plain tensors of fixed shapes, so that
`torch.compile`, `torch.export` and CUDA graphs capture a step once and replay it.

Each row is stored from slot 0 of the cache on, on whichever side the batch was padded: `prefill` moves the padding
after the text, where the causal mask hides it. The number of filled slots of a row is then the next slot to write, the
rotary position and, compared with the slot index, the attention mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig

from audiolm_lite.modeling.lora import unwrap_peft


@dataclass
class DecodeState:
    """Static key/value cache of a batch; `prefill` and `decode_step` change it in place.

    Attributes
    ----------
    keys, values : list of Tensor
        One tensor [B, kv_heads, C, head_dim] per layer in the LLM's dtype; C is the capacity in tokens.
    position : Tensor
        [B] int64, filled slots of each row.
    """

    keys: list[Tensor]
    values: list[Tensor]
    position: Tensor

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
            The LLM needs more than a plain causal cache and head (sliding or linear attention, rescaled logits), or
            `max_length` exceeds its positions.
        """
        causal_lm = unwrap_peft(llm)
        config = causal_lm.config.get_text_config()
        _check_supported(config, max_length)
        heads = config.num_attention_heads
        shape = (
            batch_size,
            getattr(config, "num_key_value_heads", None) or heads,
            max_length,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
        weight = causal_lm.get_input_embeddings().weight
        layers = range(config.num_hidden_layers)
        return cls(
            keys=[weight.new_zeros(shape) for _ in layers],
            values=[weight.new_zeros(shape) for _ in layers],
            position=torch.zeros(batch_size, dtype=torch.int64, device=weight.device),
        )

    @property
    def batch_size(self) -> int:
        """Rows B."""
        return self.keys[0].shape[0]

    @property
    def max_length(self) -> int:
        """Capacity C in tokens."""
        return self.keys[0].shape[2]


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
    order = torch.argsort((~mask).long(), dim=1, stable=True)
    slots = torch.arange(mask.shape[1], device=mask.device)
    embeds = inputs_embeds.gather(1, order[:, :, None].expand_as(inputs_embeds))
    padding = (slots >= lengths[:, None])[:, :, None]
    embeds = embeds.masked_fill(padding, 0.0)  # a NaN there would spread through 0 * NaN
    visible = (slots[None, :] <= slots[:, None])[None, None]  # [1, 1, S, S]
    hidden = _run(llm, embeds, visible, slots.expand_as(mask), _SlotCache(state, None))
    state.position.copy_(lengths)
    last = hidden[torch.arange(hidden.shape[0], device=hidden.device), lengths - 1]
    return unwrap_peft(llm).get_output_embeddings()(last).float()


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
    embeds = unwrap_peft(llm).get_input_embeddings()(token)[:, None]
    slots = torch.arange(state.max_length, device=token.device)
    visible = (slots <= position[:, None])[:, None, None]  # [B, 1, 1, C]
    hidden = _run(llm, embeds, visible, position[:, None], _SlotCache(state, position))
    logits = unwrap_peft(llm).get_output_embeddings()(hidden[:, 0]).float()
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
        keys, values = self.state.keys[layer_idx], self.state.values[layer_idx]
        if self.position is None:
            slots = torch.arange(key.shape[2], device=key.device)  # a slice would fix S != C in exported graphs
            keys[:, :, slots] = key.to(keys.dtype)
            values[:, :, slots] = value.to(values.dtype)
            return key, value  # attention over the S prompt positions, not the full capacity
        rows = torch.arange(key.shape[0], device=key.device)
        keys[rows, :, self.position] = key[:, :, 0].to(keys.dtype)
        values[rows, :, self.position] = value[:, :, 0].to(values.dtype)
        return keys, values

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Return 0: transformers uses it only for default masks and positions, which are always given here."""
        return 0


def _run(llm: nn.Module, embeds: Tensor, visible: Tensor, position_ids: Tensor, cache: _SlotCache) -> Tensor:
    """Hidden states [B, S, H] after the final norm, under an explicit mask [B or 1, 1, S, K] (true = attend)."""
    # Additive, because transformers' "eager" attention adds the mask. A 4-D mask reaches the layers unchanged.
    mask = torch.zeros(visible.shape, dtype=embeds.dtype, device=embeds.device)
    mask = mask.masked_fill(~visible, torch.finfo(embeds.dtype).min)
    output = unwrap_peft(llm).base_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
    )
    return output.last_hidden_state


def check_decoding(llm: nn.Module, max_length: int) -> None:
    """Raise ValueError for an LLM that `DecodeState.allocate` refuses, without allocating a cache.

    Parameters
    ----------
    llm : nn.Module
        Causal language model of transformers, PEFT-wrapped or not, on any device.
    max_length : int
        Capacity in tokens.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> check_decoding(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)), max_length=64)
    """
    _check_supported(unwrap_peft(llm).config.get_text_config(), max_length)


def _check_supported(config: PretrainedConfig, max_length: int) -> None:
    """Raise ValueError for models with which this cache or head would give wrong results silently."""
    name = type(config).__name__
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds or (window is not None and window < max_length):
        what = ", ".join(sorted(kinds)) or f"a sliding window of {window} tokens"
        raise ValueError(f"{name}: {what} with max_length {max_length}; only full causal attention is supported")
    for field in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, field, None) not in (None, 1, 1.0):
            raise ValueError(f"{name}: {field} = {getattr(config, field)} rescales the logits, which is not supported")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ValueError(
            f"{name}: max_length {max_length} is beyond max_position_embeddings {positions}; "
            "shorten the prompt or lower max_new_tokens"
        )
