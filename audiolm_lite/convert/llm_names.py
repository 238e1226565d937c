"""Rules for the LLM's tensors in a published checkpoint, which are those of its LoRA or of the trained LLM itself."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from audiolm_lite.backbones.tensor_report import ConversionError, TensorStatus
from audiolm_lite.convert.tensor_rules import Converted, Rule

_LAYER = r"model\.layers\.\d+\.[a-z_.]+?"
_PEFT = r"(?:base_model\.model\.)?"


def llm_rules(names: Iterable[str], prefix: str) -> list[Rule]:
    """Rules for the tensors of a causal LM below `prefix` (a regular expression) in a checkpoint with these names.

    If the checkpoint has a LoRA, the other tensors of the LLM are pretrained and frozen. Otherwise they were trained.

    Examples
    --------
    >>> import torch
    >>> from audiolm_lite.convert.tensor_rules import apply_rules
    >>> layer = "llm.model.layers.0.mlp.up_proj"
    >>> tensors = {f"{layer}.weight": torch.zeros(4, 4), f"{layer}.lora_A.weight": torch.zeros(2, 4)}
    >>> for tensor in apply_rules(tensors, llm_rules(tensors, "llm[.]")).report:
    ...     print(tensor.status, tensor.note)
    used lora: base_model.model.model.layers.0.mlp.up_proj.lora_A.weight
    ignored pretrained, frozen under the LoRA
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
        Rule(base, "ignored", "pretrained, frozen under the LoRA") if frozen else Rule(base, "llm", r"\1.\2"),
    ]


def check_lora(converted: Converted) -> None:
    """Report LoRA tensors as missing: an A without B or B without A, and what other layers have.

    Raises
    ------
    ConversionError
        Every B is zero, so the LoRA has no effect. A LoRA that was loaded under wrong names looks like this.

    Examples
    --------
    >>> import torch
    >>> converted = Converted()
    >>> converted.lora["model.layers.0.mlp.up_proj.lora_A.weight"] = torch.zeros(8, 64)
    >>> check_lora(converted)
    >>> [(tensor.name, tensor.status) for tensor in converted.report]
    [('lora: model.layers.0.mlp.up_proj.lora_B.weight', 'missing')]
    """
    lora = converted.lora
    kinds = {re.sub(r"layers\.\d+\.", "layers.*.", name) for name in lora}
    kinds |= {re.sub(r"lora_[AB]", f"lora_{side}", kind) for kind in kinds for side in "AB"}
    layers = [int(number) for name in lora for number in re.findall(r"layers\.(\d+)\.", name)]
    numbers = range(max(layers) + 1) if layers else [0]
    for name in sorted({kind.replace("*", str(number)) for kind in kinds for number in numbers} - lora.keys()):
        converted.report.append(TensorStatus(f"lora: {name}", "missing", "other layers have it"))
    b_tensors = [tensor for name, tensor in (converted.adapter | lora).items() if "lora_B" in name]
    if b_tensors and not any(tensor.count_nonzero() for tensor in b_tensors):
        raise ConversionError(
            "every lora_B of the checkpoint is zero, so its LoRA has no effect; download the checkpoint again"
        )


def lora_block(lora: Mapping[str, Tensor], alpha: float) -> dict[str, Any] | None:
    """Entry `lora` of an LLM's YAML block, None without a LoRA. Its dropout is 0: checkpoints do not contain it.

    Raises
    ------
    ConversionError
        Layers have LoRAs of different ranks.

    Examples
    --------
    >>> import torch
    >>> lora_block({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(8, 64)}, alpha=16)
    {'r': 8, 'alpha': 16, 'dropout': 0.0, 'target_modules': ['q_proj']}
    """
    if not lora:
        return None
    ranks = {tensor.shape[0] for name, tensor in lora.items() if "lora_A" in name}
    if len(ranks) != 1:
        raise ConversionError(f"the LoRA has layers of ranks {sorted(ranks)}; only one rank for all is supported")
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in lora})
    return {"r": ranks.pop(), "alpha": alpha, "dropout": 0.0, "target_modules": targets}
