"""Attention of an LLM in training: the implementations of transformers, and "matmul".

"matmul" is for CPUs in bfloat16: two matrix products and a softmax. PyTorch's fused kernel takes 2.6 to 6 times as long
there, forward and backward, for batches of 1000 tokens. Like transformers' "eager", and unlike the fused kernel, it
knows soft caps (Gemma 2) and sinks (gpt-oss).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from audiolm_lite.config.errors import ConfigError
from audiolm_lite.modeling.lora import unwrap_peft

MATMUL = "matmul"


def set_attention(llm: nn.Module, name: str) -> None:
    """Select the attention implementation of an LLM of transformers, for example "flash_attention_2" or "matmul".

    Raises
    ------
    ConfigError
        A required package is not installed, or the LLM does not support the implementation.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    >>> llm = LlamaForCausalLM(config)
    >>> set_attention(llm, "eager")
    >>> llm.config._attn_implementation
    'eager'
    """
    try:
        unwrap_peft(llm).set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        hint = ": pip install flash-attn, on an NVIDIA GPU" if name.startswith("flash") else ""
        raise ConfigError(f"attention {name} does not work here{hint}. {error}") from error


def prefers_matmul(llm: nn.Module, device: str | torch.device, precision: str) -> bool:
    """Find out whether "matmul" is the better choice: on a CPU in bf16, if the LLM uses PyTorch's kernel.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    >>> llm = LlamaForCausalLM(config)
    >>> prefers_matmul(llm, "cpu", "bf16"), prefers_matmul(llm, "cpu", "fp32"), prefers_matmul(llm, "cuda", "bf16")
    (True, False, False)
    """
    causal_lm: Any = unwrap_peft(llm)
    exchangeable = bool(getattr(causal_lm, "_supports_attention_backend", False))
    fused = exchangeable and causal_lm.config.get_text_config()._attn_implementation == "sdpa"
    return fused and torch.device(device).type == "cpu" and precision == "bf16"


def _matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention [B, S, heads, d] of queries [B, heads, S, d]; keys and values [B, kv_heads, K, d], additive mask.

    The heads of a group are further rows of one product, so keys and values are not copied for them. `s_aux` [heads] is
    a score per head that takes part in the softmax and has no value, `position_bias` is added to the scores.
    """
    batch, heads, length, dim = query.shape
    groups = key.shape[1]
    scaled = query * (dim**-0.5 if scaling is None else scaling)
    scores = scaled.reshape(batch, groups, -1, dim) @ key.transpose(2, 3)  # [B, kv_heads, heads / kv_heads * S, K]
    scores = scores.view(batch, heads, length, -1)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.view(1, -1, 1, 1).to(scores.dtype).expand(batch, -1, length, 1)], dim=-1)
    weights = nn.functional.dropout(scores.softmax(-1)[..., : key.shape[2]], dropout, module.training).to(query.dtype)
    attended = weights.view(batch, groups, -1, weights.shape[-1]) @ value
    return attended.view(batch, heads, length, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(MATMUL, _matmul_attention)
AttentionMaskInterface.register(MATMUL, eager_mask)
