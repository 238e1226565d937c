"""The part of a published checkpoint that belongs to the LLM: its LoRA, or its own trained tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from audiolm_lite.convert.accounting import ConversionError, Converted, Line, Rule

_LAYER = r"model\.layers\.\d+\.[a-z_.]+?"
_PEFT = r"(?:base_model\.model\.)?"


def llm_rules(names: Iterable[str], prefix: str) -> list[Rule]:
    """Rules for the tensors of a causal LM below `prefix` (a regular expression) in a checkpoint with these names.

    Where there is a LoRA, the LLM's other tensors are the frozen, pretrained ones; otherwise they were trained.
    """
    base = rf"{prefix}{_PEFT}({_LAYER}|model\.embed_tokens|model\.norm|lm_head)(?:\.base_layer)?\.(weight|bias)"
    frozen = any(".lora_" in name for name in names)
    return [
        Rule(
            rf"{prefix}{_PEFT}({_LAYER})\.lora_([AB])(?:\.default)?\.weight",
            "lora",
            r"base_model.model.\1.lora_\2.weight",
        ),
        Rule(rf"{prefix}{_PEFT}.*\.inv_freq", "ignored", "computed by the LLM, not learned"),
        Rule(base, "ignored", "pretrained, frozen below the LoRA") if frozen else Rule(base, "llm", r"\1.\2"),
    ]


def check_lora(converted: Converted) -> None:
    """Every layer must have the same LoRA, each with A and B; what lacks becomes a "missing" line.

    Raises
    ------
    ConversionError
        Every B is zero: the LoRA does nothing, which is how one loaded under wrong names looks.
    """
    lora = converted.lora
    kinds = {re.sub(r"layers\.\d+\.", "layers.*.", name) for name in lora}
    kinds |= {re.sub(r"lora_[AB]", f"lora_{side}", kind) for kind in kinds for side in "AB"}
    layers = [int(number) for name in lora for number in re.findall(r"layers\.(\d+)\.", name)]
    numbers = range(max(layers) + 1) if layers else [0]
    for name in sorted({kind.replace("*", str(number)) for kind in kinds for number in numbers} - lora.keys()):
        converted.lines.append(Line(f"lora: {name}", "missing", "other layers have it"))
    up = [tensor for name, tensor in (converted.adapter | lora).items() if "lora_B" in name]
    if up and not any(tensor.count_nonzero() for tensor in up):
        raise ConversionError("every lora_B of the checkpoint is zero, so its LoRA does nothing; fetch it again")


def lora_block(lora: Mapping[str, Tensor], alpha: float) -> dict[str, Any] | None:
    """Entry `lora` of an LLM's YAML block; None without a LoRA. Dropout is for training and not in a checkpoint."""
    if not lora:
        return None
    ranks = {tensor.shape[0] for name, tensor in lora.items() if "lora_A" in name}
    if len(ranks) != 1:
        raise ConversionError(f"the LoRA has several ranks, {sorted(ranks)}; one is supported")
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in lora})
    return {"r": ranks.pop(), "alpha": alpha, "dropout": 0.0, "target_modules": targets}
