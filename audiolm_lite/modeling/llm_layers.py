"""What the layers of an LLM read: word embeddings at their scale, all earlier tokens, a window of them, or a state."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from audiolm_lite.modeling.lora import unwrap_peft

FULL, SLIDING = "full_attention", "sliding_attention"
# Layers with a state of fixed size in place of keys and values, alone or next to attention; and those without any.
_RECURRENT = {"linear_attention", "conv", "hybrid"}
_STATELESS = {"moe", "mlp"}
# Types with such layers that transformers does not mark as stateful.
_UNMARKED = {"lfm2", "lfm2_moe", "lfm3", "minimax"}


def word_embeddings(llm: nn.Module, ids: Tensor) -> Tensor:
    """Return the vectors [..., H] that the first layer of an LLM receives for token ids [...].

    They have the scale that audio tokens must have too, which are inserted between them. Gemma's embedding module
    multiplies by sqrt(H), so an adapter learns vectors of that length. Granite multiplies its input after that,
    words and audio tokens alike.

    Examples
    --------
    >>> import torch
    >>> from transformers import GemmaConfig, GemmaForCausalLM
    >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> llm = GemmaForCausalLM(GemmaConfig(vocab_size=8, num_key_value_heads=1, head_dim=8, **sizes))
    >>> words, rows = word_embeddings(llm, torch.tensor([3, 5])), llm.model.embed_tokens.weight[[3, 5]]
    >>> bool(torch.allclose(words, 4 * rows))  # in transformers 4.57, Gemma multiplies like Granite
    True
    """
    causal_lm = unwrap_peft(llm)
    embedded = causal_lm.get_input_embeddings()(ids)
    # The only type that multiplies in its forward pass, and only where it is called with ids.
    return embedded * causal_lm.config.embedding_multiplier if causal_lm.config.model_type == "falcon_h1" else embedded


def check_llm(llm: nn.Module) -> None:
    """Check that an LLM takes embeddings in place of token ids, and positions, without a loss.

    Raises
    ------
    ValueError
        It does not.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> check_llm(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)))
    """
    causal_lm = unwrap_peft(llm)
    name = type(causal_lm).__name__
    if getattr(causal_lm.config.get_text_config(), "hidden_size_per_layer_input", 0):
        raise ValueError(f"{name} has embeddings of every layer by token id, which audio tokens do not have")
    taken = inspect.signature(causal_lm.base_model.forward).parameters
    if missing := {"inputs_embeds", "position_ids"} - set(taken):
        raise ValueError(f"{name} takes no {' and no '.join(sorted(missing))}")
    if not {"cache", "past_key_values"} & set(taken):  # two names of the same argument
        raise ValueError(f"{name} has no cache of keys and values")


def is_recurrent(llm: nn.Module) -> bool:
    """Find out whether an LLM has layers that carry a state from token to token (linear attention, convolutions).

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> is_recurrent(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)))
    False
    """
    causal_lm = unwrap_peft(llm)
    marked = bool(getattr(causal_lm, "_is_stateful", False))
    return marked or causal_lm.config.get_text_config().model_type in _UNMARKED


def unknown_layers(llm: nn.Module) -> list[str]:
    """Names of an LLM's kinds of layers that this library cannot decode.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> llm = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    >>> unknown_layers(llm)
    []
    >>> llm.config.layer_types = ["indexed_attention"]
    >>> unknown_layers(llm)
    ['indexed_attention']
    """
    causal_lm = unwrap_peft(llm)
    config: Any = causal_lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [FULL])
    if is_recurrent(llm):
        return sorted(kinds - _RECURRENT - _STATELESS - {FULL, SLIDING}) or ([] if kinds - {FULL} else ["recurrent"])
    windows = {kind for kind, window in attention_windows(config).items() if window is not None}
    # A configuration may have entries that its model ignores; one that reads windows imports their mask.
    modules = [sys.modules[parent.__module__] for parent in type(causal_lm.base_model).__mro__]
    ignored = windows and not any(hasattr(module, "create_sliding_window_causal_mask") for module in modules)
    return sorted(kinds - {FULL, SLIDING} | (windows if ignored else set()))


def attention_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """Return the kinds of attention layers of an LLM: kind -> how many tokens back a token reads; None: all.

    Examples
    --------
    >>> from transformers import LlamaConfig, MistralConfig, Qwen2Config
    >>> attention_windows(LlamaConfig()), attention_windows(MistralConfig(sliding_window=64))
    ({'full_attention': None}, {'sliding_attention': 64})
    >>> sizes = {"num_hidden_layers": 3, "max_window_layers": 1}
    >>> attention_windows(Qwen2Config(use_sliding_window=True, sliding_window=64, **sizes))
    {'full_attention': None, 'sliding_attention': 64}
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        kinds = [FULL if window is None else SLIDING]
    return {kind: window if kind == SLIDING else None for kind in sorted(set(kinds))}


def attention_masks(
    config: PretrainedConfig, queries: Tensor, keys: Tensor, form: Callable[[Tensor], Tensor]
) -> Tensor | dict[str, Tensor]:
    """Build the masks of an LLM's attention in the form that its layers take: one, or one per kind of layer.

    Transformers passes masks of four dimensions on as they are. Its own masks suppose rows that begin with padding; and
    those of a few LLMs (gpt-oss) do not separate the items of a packed batch.

    Parameters
    ----------
    config : PretrainedConfig
        Of the LLM.
    queries : Tensor
        [B or 1, S] int64, places of the inputs.
    keys : Tensor
        [K] int64, places of the keys.
    form : callable
        Applied to each mask [B or 1, 1, S, K] bool, true where a query reads a key.

    Examples
    --------
    >>> from transformers import MistralConfig
    >>> place = torch.arange(4)
    >>> attention_masks(MistralConfig(sliding_window=2), place[None], place, Tensor.int)
    tensor([[[[1, 0, 0, 0],
              [1, 1, 0, 0],
              [0, 1, 1, 0],
              [0, 0, 1, 1]]]], dtype=torch.int32)
    """
    masks = {}
    for kind, window in attention_windows(config).items():
        visible = keys <= queries[..., None]
        if window is not None:
            visible = visible & (keys > queries[..., None] - window)
        masks[kind] = form(visible[:, None])
    return masks if len(masks) > 1 else next(iter(masks.values()))


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to be added to scores, as transformers' "eager" attention takes it: 0 where `mask` is true.

    Examples
    --------
    >>> additive(torch.tensor([True, False]), torch.float16)
    tensor([     0., -65504.], dtype=torch.float16)
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
