"""Voxtral: PEFT folders with the module names of any version of transformers, and the projector of a model.

transformers 5 moved Voxtral's modules below one `model`. A LoRA saved by transformers 4 names modules that version 5
does not have, and vice versa.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audiolm_lite.backbones.tensor_report import ConversionError
from audiolm_lite.convert.read import read_published
from audiolm_lite.convert.tensor_rules import Converted, Rule, apply_rules

FILES = ("adapter_model.safetensors", "adapter_model.bin", "model*.safetensors")
OPTIONS = {
    "layout": (str, None, 'module names to write, "old" or "new" (default: those of the installed transformers)'),
    "projector": (Path, None, "Voxtral folder or file: convert its projector with the LoRA to an adapter"),
}
TEMPLATE = "{bos}[INST]{audio}{instruction}[/INST]{answer}{eos}"

_TO_NEW = [
    (r"^language_model\.lm_head\b", "lm_head"),
    (r"^language_model\.model\b", "model.language_model"),
    (r"^(audio_tower|multi_modal_projector)\b", r"model.\1"),
]
_TO_OLD = [
    (r"^lm_head\b", "language_model.lm_head"),
    (r"^model\.language_model\b", "language_model.model"),
    (r"^model\.(audio_tower|multi_modal_projector)\b", r"\1"),
]
_RULES = [
    Rule(r"(?:model\.)?multi_modal_projector\.linear_1\.weight", "adapter", "pooled.weight"),
    Rule(r"(?:model\.)?multi_modal_projector\.linear_2\.weight", "adapter", "projection.weight"),
    Rule(r"(?:model\.)?audio_tower\..*", "ignored", "the encoder, pretrained; it has its own source"),
    Rule(r"(?:model\.)?language_model\..*|lm_head\.weight", "ignored", "the LLM, pretrained; it has its own source"),
]
_LORA = r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight"


def installed_layout() -> str:
    """Module layout of the installed transformers, "old" or "new"."""
    from transformers.models.voxtral import modeling_voxtral

    return "new" if hasattr(modeling_voxtral, "VoxtralModel") else "old"


def rename(name: str, layout: str) -> str:
    """Name of a module or tensor of `VoxtralForConditionalGeneration` in this layout, from its name in either layout.

    Examples
    --------
    >>> rename("language_model.lm_head.weight", "new"), rename("model.audio_tower.conv1.bias", "old")
    ('lm_head.weight', 'audio_tower.conv1.bias')
    """
    for pattern, replacement in _TO_NEW if layout == "new" else _TO_OLD:
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def convert(tensors: Mapping[str, Tensor], *, layout: str | None = None, projector: Path | None = None) -> Converted:
    """Convert the tensors of a PEFT folder or of a complete model.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    layout : {"old", "new"}, optional
        Module names of the converted LoRA; None: those of the installed transformers.
    projector : path, optional
        The model that the LoRA adapts. Its projector with the LoRA becomes an adapter. (Of a complete model in
        `tensors`, the projector becomes an adapter without this argument.)

    Examples
    --------
    >>> import torch
    >>> lora = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    >>> list(convert({lora: torch.zeros(8, 64)}, layout="new").lora)
    ['base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight']
    """
    if not any(".lora_" in name for name in tensors):
        return _projector(tensors)
    if projector is not None:
        return _adapted_projector(tensors, projector)
    result = apply_rules(tensors, [Rule(_LORA, "lora", r"base_model.model.\1.lora_\2.weight")])
    layout = layout or installed_layout()
    prefix = "base_model.model."
    for name in list(result.lora):
        result.lora[prefix + rename(name.removeprefix(prefix), layout)] = result.lora.pop(name)
    for tensor in result.report:
        if tensor.status == "used":
            tensor.note = f"lora: {prefix}{rename(tensor.note.removeprefix(f'lora: {prefix}'), layout)}"
    return result


def _projector(tensors: Mapping[str, Tensor]) -> Converted:
    result = apply_rules(tensors, _RULES)
    joined, llm_dim = result.adapter["pooled.weight"].shape[1], result.adapter["projection.weight"].shape[0]
    convolution = next((tensor for name, tensor in tensors.items() if name.endswith("audio_tower.conv1.weight")), None)
    stride = 4 if convolution is None else joined // convolution.shape[0]
    result.block = {"type": "mlp_pooling", "pooling": "concat", "stride": stride, "bias": False}
    result.sizes = {"feature_dim": joined // stride, "llm_dim": llm_dim}
    return result


def _adapted_projector(tensors: Mapping[str, Tensor], projector: Path) -> Converted:
    lora = r"base_model\.model\.(?:model\.)?multi_modal_projector\.linear_{}\.lora_([AB])(?:\.default)?\.weight"
    rules = [
        Rule(lora.format(1), "adapter", r"pooled.lora_\1.default.weight"),
        Rule(lora.format(2), "adapter", r"projection.lora_\1.default.weight"),
    ]
    result, base = apply_rules(tensors, rules), _projector(read_published(projector, FILES).tensors)
    rank = result.adapter["pooled.lora_A.default.weight"].shape[0]
    result.adapter |= {name.replace(".weight", ".base_layer.weight"): tensor for name, tensor in base.adapter.items()}
    result.report += base.report
    result.block, result.sizes = {**base.block, "lora": {"r": rank, "alpha": None, "dropout": 0.0}}, base.sizes
    return result


def peft_config(config: Mapping[str, Any], lora: Mapping[str, Tensor]) -> dict[str, Any]:
    """Configuration of a PEFT folder with these LoRA tensors, whose `target_modules` are complete module names.

    Parameters
    ----------
    config : mapping
        The published configuration; empty if there is none.
    lora : mapping of str to Tensor

    Raises
    ------
    ConversionError
        There is no configuration, or it is not that of a plain LoRA with one rank and alpha.

    Examples
    --------
    >>> import torch
    >>> lora = {"base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(8, 64)}
    >>> peft_config({"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}, lora)["target_modules"]
    ['model.language_model.layers.0.self_attn.q_proj']
    """
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("modules_to_save"):
        kind = "DoRA or modules_to_save" if config.get("peft_type") == "LORA" else repr(config.get("peft_type"))
        raise ConversionError(f"adapter_config.json next to the tensors must be that of a plain LORA, not of {kind}")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ConversionError("adapter_config.json has rank_pattern or alpha_pattern; only one rank and one alpha work")
    modules = sorted({name.removeprefix("base_model.model.").split(".lora_")[0] for name in lora})
    return {**config, "target_modules": modules, "inference_mode": True}
