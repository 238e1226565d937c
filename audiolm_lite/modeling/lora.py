"""Causal language models with and without a LoRA of PEFT."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Ends of the names in PEFT's files of the two matrices of a linear layer.
LORA_TENSORS = (".lora_A.weight", ".lora_B.weight")


def unwrap_peft(llm: nn.Module) -> Any:
    """Causal language model of transformers inside a PEFT wrapper, or `llm` itself where there is no wrapper.

    The LoRA layers stay in place: PEFT inserts them into the wrapped model.

    Examples
    --------
    >>> from peft import LoraConfig, get_peft_model
    >>> linear = nn.Sequential(nn.Linear(2, 2))
    >>> wrapped = get_peft_model(linear, LoraConfig(target_modules=["0"]))
    >>> unwrap_peft(wrapped) is linear, unwrap_peft(linear) is linear
    (True, True)
    """
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm


def merge_lora(llm: nn.Module) -> nn.Module:
    """Add a LoRA to the weights it adapts and remove it, which saves two small matrix products per adapted layer.

    The sum is rounded to the dtype of the weights.

    Parameters
    ----------
    llm : nn.Module
        Causal language model, changed in place if it is wrapped by PEFT.

    Returns
    -------
    nn.Module
        Model without wrapper, with the attribute `lora_is_merged`; `llm` itself where there is no LoRA, or where the
        weights are quantised: quantising the sum would add a second rounding error.

    Examples
    --------
    >>> from peft import LoraConfig, get_peft_model
    >>> wrapped = get_peft_model(nn.Sequential(nn.Linear(2, 2)), LoraConfig(target_modules=["0"]))
    >>> merge_lora(wrapped)
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    if not hasattr(llm, "merge_and_unload") or getattr(unwrap_peft(llm), "is_quantized", False):
        return llm
    merged = llm.merge_and_unload()
    merged.lora_is_merged = True  # a model folder stores the LoRA, so this model cannot be saved as one
    return merged


@torch.no_grad()
def add_lora(llm: nn.Module, stored: Mapping[str, Tensor], scale: float) -> None:
    """Add a stored LoRA to the weights of an LLM, with the same result as `merge_lora` after PEFT has loaded it.

    Parameters
    ----------
    llm : nn.Module
        Causal language model without wrapper, changed in place; it gets the attribute `lora_is_merged`.
    stored : mapping
        Tensors of PEFT's `adapter_model.safetensors`: A [r, in] and B [out, r] of linear layers.
    scale : float
        Factor of their product, alpha / r.

    Raises
    ------
    ValueError
        A tensor does not belong to this LLM or has another shape, or every B is zero.

    Examples
    --------
    >>> llm = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.zeros_(llm[0].weight)
    >>> pair = {"lora_A": torch.tensor([[1.0, 2.0]]), "lora_B": torch.tensor([[3.0]])}
    >>> add_lora(llm, {f"base_model.model.0.{name}.weight": tensor for name, tensor in pair.items()}, scale=2)
    >>> llm[0].weight.tolist()
    [[6.0, 12.0]]
    """
    a, b = ({n.removesuffix(end): t.float() for n, t in stored.items() if n.endswith(end)} for end in LORA_TENSORS)
    modules = {f"base_model.model.{name}": module for name, module in llm.named_modules()}
    if odd := sorted(a.keys() ^ b.keys() | (a.keys() - modules.keys())):
        raise ValueError(f"{odd[0]} does not belong to this LLM, or lacks one of its two matrices")
    if not any(bool(tensor.count_nonzero()) for tensor in b.values()):
        raise ValueError("every lora_B is zero, so the LoRA has no effect")
    for name in a:
        weight: Any = modules[name].weight
        # transformers' Conv1D, a linear layer of early models, stores its weight transposed.
        weight = weight.data.T if type(modules[name]).__name__ == "Conv1D" else weight.data
        if weight.shape != (b[name].shape[0], a[name].shape[1]) or b[name].shape[1] != a[name].shape[0]:
            raise ValueError(f"{name} has the shapes {list(a[name].shape)} and {list(b[name].shape)}")
        weight += (b[name] @ a[name]) * scale
    llm.lora_is_merged = True  # see merge_lora
