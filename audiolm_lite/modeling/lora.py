"""Causal language models with and without a LoRA of PEFT."""

from typing import Any

from torch import nn


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
