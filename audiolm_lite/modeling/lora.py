"""Causal language models with and without a LoRA of PEFT."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Ends of the names in PEFT's files of the two matrices of a linear layer.
LORA_TENSORS = (".lora_A.weight", ".lora_B.weight")


def lora_difference(stored: Mapping[str, Any] | None, given: Mapping[str, Any] | None, where: str) -> list[str]:
    """Describe how the block of a LoRA differs from the one that stored matrices were trained with.

    The same matrices with another alpha are another model, and with another dropout are trained otherwise.

    Parameters
    ----------
    stored : mapping or None
        Block of the stored LoRA; None if there is none, which agrees with any new one.
    given : mapping or None
        Block that is to go on with it.
    where : str
        Name of the block, for the descriptions.

    Returns
    -------
    list of str
        One entry per difference, each with the value to write.

    Examples
    --------
    >>> stored = {"r": 8, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]}
    >>> lora_difference(stored, {**stored, "target_modules": ["v_proj", "q_proj"], "dora": False}, "llm.lora")
    []
    >>> lora_difference(stored, {**stored, "alpha": 128}, "llm.lora")
    ['llm.lora.alpha is 128 and was 32 in training; write alpha: 32']
    """
    if stored is None:
        return []
    if given is None:
        return [f"{where} is null, and the LoRA that was trained has {dict(stored)}; write this block"]
    before, now = _comparable_lora(stored), _comparable_lora(given)
    return [
        f"{where}.{name} is {now.get(name)} and was {before.get(name)} in training; write {name}: {before.get(name)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def _comparable_lora(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a LoRA block with its defaults and its target modules in order."""
    modules = block.get("target_modules")
    ordered = modules if modules is None or isinstance(modules, str) else sorted(modules)
    return {"dora": False, "rslora": False, **block, "target_modules": ordered}


def peft_block(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return PEFT's configuration of a LoRA, the content of `adapter_config.json`, as the `lora` block of an LLM.

    Examples
    --------
    >>> peft_block({"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj"], "use_dora": True})
    {'r': 8, 'alpha': 16, 'dropout': 0.0, 'target_modules': ['q_proj'], 'dora': True, 'rslora': False}
    """
    modules = config["target_modules"]
    return {
        "r": config["r"],
        "alpha": config["lora_alpha"],
        "dropout": config["lora_dropout"],
        "target_modules": modules if isinstance(modules, str) else sorted(modules),
        "dora": bool(config.get("use_dora")),
        "rslora": bool(config.get("use_rslora")),
    }


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


def is_quantized(llm: nn.Module) -> bool:
    """Whether a causal LM has quantised weights, by the entry `quantization` or because it was published so.

    Examples
    --------
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> before = is_quantized(layer)
    >>> layer.weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.uint8), requires_grad=False)
    >>> before, is_quantized(layer)
    (False, True)
    """
    marked = getattr(unwrap_peft(llm), "is_quantized", False)
    return bool(marked) or any(not parameter.is_floating_point() for parameter in llm.parameters())


def merge_lora(llm: nn.Module) -> nn.Module:
    """Add a LoRA to the weights it adapts and remove it, which saves two small matrix products per adapted layer.

    The sum is rounded to the dtype of the weights. What is done is logged.

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
    if not hasattr(llm, "merge_and_unload"):
        return llm
    if is_quantized(llm):
        logger.info("The LLM is quantised, so its LoRA stays separate from its weights")
        return llm
    _report_merge(unwrap_peft(llm))
    merged = llm.merge_and_unload()
    merged.lora_is_merged = True  # a model folder stores the LoRA, so this model cannot be saved as one
    return merged


def lora_scale(block: Mapping[str, Any]) -> float:
    """Return the factor of a LoRA: alpha / r, or with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732).

    Examples
    --------
    >>> lora_scale({"r": 16, "alpha": 32}), lora_scale({"r": 16, "alpha": 32, "rslora": True})
    (2.0, 8.0)
    """
    return block["alpha"] / (math.sqrt(block["r"]) if block.get("rslora") else block["r"])


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
        Factor of their product, see `lora_scale`.

    Raises
    ------
    ValueError
        A tensor does not belong to this LLM or has another shape, every B is zero, or the LLM is quantised.

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
    if is_quantized(llm):
        raise ValueError("the LLM is quantised, and a LoRA is not added to quantised weights; load it without merging")
    if not any(bool(tensor.count_nonzero()) for tensor in b.values()):
        raise ValueError("every lora_B is zero, so the LoRA has no effect")
    _report_merge(llm)
    for name in a:
        weight: Any = modules[name].weight
        # transformers' Conv1D, a linear layer of early models, stores its weight transposed.
        weight = weight.data.T if type(modules[name]).__name__ == "Conv1D" else weight.data
        if weight.shape != (b[name].shape[0], a[name].shape[1]) or b[name].shape[1] != a[name].shape[0]:
            raise ValueError(f"{name} has the shapes {list(a[name].shape)} and {list(b[name].shape)}")
        weight += (b[name] @ a[name]) * scale
    llm.lora_is_merged = True  # see merge_lora


def _report_merge(llm: nn.Module) -> None:
    dtype = str(next(llm.parameters()).dtype).removeprefix("torch.")
    logger.info(
        "The LoRA is added to the weights of the LLM in memory, with sums rounded to %s; the model folder stays as it "
        "is, and the merged model cannot be saved as one",
        dtype,
    )
