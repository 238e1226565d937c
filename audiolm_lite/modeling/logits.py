"""Logits of an LLM: its output layer, and what its own forward pass does with the result.

Granite divides its logits by a constant, Cohere multiplies them, Gemma squeezes them through a tanh. The fields of
their configurations have no common meaning (`logits_scaling` divides in Granite and multiplies in HyperCLOVA X). So
the rescaling is that of the LLM's own `forward`, which runs with logits in place of the layers and the output layer.
"""

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from audiolm_lite.modeling.lora import unwrap_peft

# One entry per LLM in memory: whether an LLM rescales its logits is asked for at every token.
_KNOWN: WeakKeyDictionary[nn.Module, Callable[[Tensor], Tensor] | None] = WeakKeyDictionary()


def llm_logits(llm: nn.Module, hidden: Tensor) -> Tensor:
    """Compute the logits [..., V] of an LLM for its last hidden states [..., H].

    Raises
    ------
    ValueError
        As in `logit_rescaling`.

    Examples
    --------
    >>> from transformers import CohereConfig, CohereForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> llm = CohereForCausalLM(CohereConfig(vocab_size=16, pad_token_id=0, logit_scale=0.25, **sizes))
    >>> hidden = torch.randn(3, 8)
    >>> torch.equal(llm_logits(llm, hidden), 0.25 * llm.lm_head(hidden))
    True
    """
    raw = unwrap_peft(llm).get_output_embeddings()(hidden)
    rescale = logit_rescaling(llm)
    return raw if rescale is None else rescale(raw)


def logit_rescaling(llm: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Find what an LLM does with the result [..., V] of its output layer: a function of it, or None for nothing.

    Parameters
    ----------
    llm : nn.Module
        Causal language model of transformers, PEFT-wrapped or not, on any device.

    Raises
    ------
    ValueError
        The logits cannot be computed apart from the layers.

    Examples
    --------
    >>> from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> print(logit_rescaling(LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))))
    None
    >>> granite = GraniteForCausalLM(GraniteConfig(vocab_size=16, logits_scaling=8.0, **sizes))
    >>> logit_rescaling(granite)(torch.tensor([16.0, 4.0]))
    tensor([2.0000, 0.5000])
    """
    causal_lm = unwrap_peft(llm)
    if causal_lm not in _KNOWN:
        rescale = _own_rescaling(causal_lm)
        probe = torch.linspace(-100, 100, causal_lm.config.get_text_config().vocab_size, device="cpu")
        try:
            plain = torch.equal(rescale(probe), probe)
        except Exception as error:  # any, because any code of transformers may run here
            raise ValueError(f"{type(causal_lm).__name__}: its logits are no function of its output layer") from error
        _KNOWN[causal_lm] = None if plain else rescale
    return _KNOWN[causal_lm]


def _own_rescaling(causal_lm: Any) -> Callable[[Tensor], Tensor]:
    """The LLM's forward, as a function of what its output layer returns."""
    name = type(causal_lm).__name__
    base, head = causal_lm.base_model, causal_lm.get_output_embeddings()
    children = causal_lm._modules
    if base is causal_lm or not {id(base), id(head)} <= set(map(id, children.values())):
        raise ValueError(f"{name}: its output layer does not follow its layers directly")
    stand_ins = {id(base): _Given(base), id(head): nn.Identity()}
    # A shallow copy: the weights stay those of the LLM, and hooks and wrappers of its own modules do not run.
    shadow = copy.copy(causal_lm)
    shadow.__dict__["_modules"] = {key: stand_ins.get(id(child), child) for key, child in children.items()}

    def rescale(raw: Tensor) -> Tensor:
        outputs = type(shadow).forward(shadow, inputs_embeds=raw.reshape(1, -1, raw.shape[-1]), return_dict=True)
        return outputs.logits.reshape(raw.shape)

    return rescale


class _Given(nn.Module):
    """Stands for the layers of an LLM: returns the states that it gets, and has the attributes of the layers."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.__dict__["base"] = base  # not a submodule

    def __getattr__(self, name: str) -> Any:
        if name == "decoder":  # OPT and its relatives call this part of their layers
            return self
        return getattr(self.__dict__["base"], name)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> "_States":
        return _States(inputs_embeds)


class _States:
    """The output of an LLM's layers; everything except the last hidden states is None."""

    def __init__(self, hidden: Tensor):
        self.last_hidden_state = hidden

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
